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
    paused: bool = False
    reason: str = Field(min_length=1, max_length=1024)
    command_id: Id | None = None
    decided_at: AwareDatetime
