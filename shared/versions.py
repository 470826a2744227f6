"""The records of model versions and rollout (design sections 4, 6 and 7)."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field

from shared.events import Digest, Id, LogRecord, Part, VersionName

Verdict = Literal["passed", "failed", "inconclusive"]
MAX_HISTORY = 20
"""Maximum number of versions to which repeated rollbacks return."""


def version_name(line: str, number: int | None, digest: str) -> str:
    """Return `<line>@v<N>-<digest8>`, or `<line>@base-<digest8>` for the base (`number` None)."""
    return f"{line}@{'base' if number is None else f'v{number}'}-{digest[:8]}"


def batch_name(line: str, partition: int, number: int) -> str:
    """Return `<line>-<partition>-<number>`. Numbers count from 1 per line and partition, without gaps."""
    return f"{line}-{partition}-{number}"


def batch_position(batch_id: str) -> tuple[int, int]:
    """Return (partition, number) of a batch id."""
    _, partition, number = batch_id.rsplit("-", 2)
    return int(partition), int(number)


class VersionRef(Part):
    """Reference to a version, sufficient to fetch, verify and serve it.

    `uri` is empty for the base, of which each service loads its own copy.
    """

    version: VersionName
    kind: Literal["base", "lora", "full"]
    uri: str = Field("", max_length=2048)
    digest: Digest


class Figure(Part):
    """One measured value with its confidence interval. `baseline` is the value of the version compared against."""

    name: str
    n: int = Field(ge=0)
    value: float | None = None
    low: float | None = None
    high: float | None = None
    baseline: float | None = None
    bound: float | None = Field(
        None, description="Value that `low` (or `value`) had to reach. Absent if the figure is informational."
    )
    passed: bool | None = None


class GateTest(Part):
    """Test of whether a version is better than another one, on the items of held-out users."""

    wins: int = Field(ge=0)
    losses: int = Field(ge=0)
    ties: int = Field(ge=0)
    users: int = Field(ge=0, description="Users who have an item.")
    groups: int = Field(ge=0, description="Different questions.")
    p_users: float = Field(ge=0, le=1, description="p-value over users, one vote each.")
    p_groups: float = Field(
        ge=0, le=1, description="p-value over questions, one vote each. The larger p-value counts."
    )


class KindTally(Part):
    """Outcomes of the items of one kind, such as corrections, against the stable version."""

    kind: str
    wins: int = Field(ge=0)
    losses: int = Field(ge=0)
    ties: int = Field(ge=0)


ControlState = Literal["not_run", "passed", "not_passed"]
"""What the comparison with a control showed: a version trained on the same feedback with permuted answers."""


class GateReport(Part):
    """Result of the offline evaluation of a version. Holds figures, never user text."""

    verdict: Verdict
    reasons: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    gated_against: VersionName
    number: int = Field(
        1,
        ge=1,
        le=1_000_000,
        description="Counts the gates of this version. A higher number replaces a lower one.",
    )
    more_items: int | None = Field(
        None,
        ge=0,
        description="Estimated number of additional held-out items that would make the result conclusive.",
    )
    new_items: int | None = Field(
        None,
        ge=0,
        description="Held-out items with feedback that the version's last gate did not have. Absent at the first gate.",
    )
    earlier_tests: int = Field(
        0, ge=0, description="Gates of this version before this one that had enough items to test."
    )
    seconds: float = Field(0.0, ge=0)
    look: int = Field(
        1, ge=1, description="Which gate of the line since its last promotion this is, counted from 1."
    )
    alpha: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Significance level of this gate. Absent if there was too little to test.",
    )
    test: GateTest | None = Field(None, description="The version against the stable version.")
    ledger: tuple[KindTally, ...] = Field((), description="The items of `test` by kind.")
    control_state: ControlState = "not_run"
    control: GateTest | None = Field(None, description="The version against a control, on the same items.")


class DatasetRef(Part):
    """Reference to the dataset snapshot that a version was trained on, by content."""

    digest: Digest
    examples: int = Field(ge=0)
    users: int = Field(ge=0)
    through: dict[str, int] = Field(
        default_factory=dict,
        description="partition -> highest batch number read. Batches are numbered without gaps.",
    )
    tokens: int = Field(0, ge=0)

    def holds(self, batch_id: str) -> bool:
        """Return whether the batch was read for this snapshot."""
        partition, number = batch_position(batch_id)
        return self.through.get(str(partition), 0) >= number


class ModelVersion(LogRecord):
    """One immutable, content-addressed version, published when it is complete.

    It is published again only with a later gate report; everything else stays the same.
    """

    event_type = "loopwright.version"
    ref: VersionRef
    number: int | None = Field(None, ge=1, description="Absent for the base.")
    base: VersionName
    base_model: str = Field(description="Hugging Face id or folder name of the base, for display.")
    run_id: Id | None = None
    dataset: DatasetRef | None = None
    gate: GateReport | None = None
    reproducible: bool = True
    created_at: AwareDatetime


class CanaryArm(Part):
    """Users of one version in one step of a canary. Each user counts once."""

    version: VersionName
    seen: int = Field(ge=0, description="Users with a response.")
    users: int = Field(ge=0, description="Users with feedback.")
    mean: float | None = Field(None, ge=0, le=1, description="Their mean satisfaction. Absent without users.")
    low: float = Field(0.0, ge=0, le=1, description="Lower end of its 95 % interval, valid at every look.")
    high: float = Field(1.0, ge=0, le=1, description="Upper end of that interval.")
    failed: float | None = Field(None, ge=0, le=1, description="Share of the sampled requests that failed.")
    latency_ms: float | None = Field(
        None, ge=0, description="Typical latency (geometric mean) of sampled ones."
    )


class CanaryTest(Part):
    """Figures of the present step of a canary. The p-values are valid at every look."""

    share: float = Field(ge=0, le=1)
    step_began_at: AwareDatetime
    deadline_at: AwareDatetime
    canary: CanaryArm
    stable: CanaryArm
    harm_p: float = Field(ge=0, le=1, description="p-value of: the canary is at least as good.")
    harm_alpha: float = Field(gt=0, le=1, description="Level at which the canary is rolled back.")
    promotion_p: float = Field(ge=0, le=1, description="p-value of: it is worse by at least `margin`.")
    promotion_alpha: float = Field(gt=0, le=1, description="Level at which, in the last step, it takes over.")
    margin: float = Field(ge=0, lt=1)
    waits_for: tuple[str, ...] = Field(
        (), description="What is missing for the next step. Empty once decided."
    )


class CanaryPoint(Part):
    """The intervals of both arms at one time of a canary."""

    at: AwareDatetime
    share: float = Field(ge=0, le=1)
    canary_users: int = Field(ge=0)
    canary_low: float
    canary_mean: float | None = None
    canary_high: float
    stable_users: int = Field(ge=0)
    stable_low: float
    stable_mean: float | None = None
    stable_high: float


MAX_CANARY_POINTS = 60


class CanaryStatus(LogRecord):
    """Progress of the newest canary of a line, published every few seconds while users are counted."""

    event_type = "loopwright.canary"
    seq: int = Field(ge=1, description="The rollout record with which the present step began.")
    test: CanaryTest
    points: tuple[CanaryPoint, ...] = Field((), max_length=MAX_CANARY_POINTS)
    updated_at: AwareDatetime


class RolloutRecord(LogRecord):
    """The desired state of a line. `seq` only increases; the record with the highest `seq` is current.

    The action `hold` changes nothing that serves: a version that passed its gate has to wait, and `reason` says why.
    """

    event_type = "loopwright.rollout"
    seq: int = Field(ge=1)
    action: Literal["adopt_base", "promote", "rollback", "canary", "pause", "resume", "pin", "hold"]
    stable: VersionRef
    previous: VersionRef | None = Field(
        None, description="The version to which a rollback returns: the first of `history`."
    )
    history: tuple[VersionRef, ...] = Field(
        (),
        max_length=MAX_HISTORY,
        description="Former stable versions to which repeated rollbacks return, newest first.",
    )
    waiting: VersionName | None = Field(
        None, description="A version that passed its gate and is not promoted yet."
    )
    canary: VersionRef | None = None
    share: float = Field(0.0, ge=0, le=1)
    test: CanaryTest | None = Field(None, description="Figures behind a decision about a canary.")
    paused: bool = False
    reason: str = Field(min_length=1, max_length=1024)
    command_id: Id | None = None
    decided_at: AwareDatetime
