"""The records of versions, rollout and operator commands (design sections 4, 6 and 7)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, TypeAdapter

from shared.events import Digest, Id, LogRecord, Part, VersionName

Verdict = Literal["passed", "failed", "inconclusive"]


def version_name(line: str, number: int | None, digest: str) -> str:
    """`<line>@v<N>-<digest8>`; the base (number None) is `<line>@base-<digest8>`."""
    return f"{line}@{'base' if number is None else f'v{number}'}-{digest[:8]}"


def batch_name(line: str, partition: int, number: int) -> str:
    """`<line>-<partition>-<number>`: numbers count up from 1 per line and partition, without gaps."""
    return f"{line}-{partition}-{number}"


def batch_position(batch_id: str) -> tuple[int, int]:
    """(partition, number) of a batch id made by `batch_name`."""
    _, partition, number = batch_id.rsplit("-", 2)
    return int(partition), int(number)


class VersionRef(Part):
    """Enough to fetch, verify and serve a version. `uri` is empty for the base: each side loads its own copy."""

    version: VersionName
    kind: Literal["base", "lora", "full"]
    uri: str = ""
    digest: Digest


class Figure(Part):
    """One measured figure with its interval. `baseline` is the same figure for the version gated against."""

    name: str
    n: int = Field(ge=0)
    value: float | None = None
    low: float | None = None
    high: float | None = None
    baseline: float | None = None
    bound: float | None = Field(
        None, description="what `low` (or `value`) had to reach; absent = for information"
    )
    passed: bool | None = None


class GateReport(Part):
    """The offline test before any user sees a version. Holds figures, never user text."""

    verdict: Verdict
    reasons: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    gated_against: VersionName
    more_items: int | None = Field(
        None,
        ge=0,
        description="about how many more held-out items would decide: an estimate, where it is known",
    )
    seconds: float = Field(0.0, ge=0)


class DatasetRef(Part):
    """The snapshot a version was trained from, by content."""

    digest: Digest
    examples: int = Field(ge=0)
    users: int = Field(ge=0)
    through: dict[str, int] = Field(
        default_factory=dict,
        description="partition -> highest batch number read; batches are numbered without gaps",
    )
    tokens: int = Field(0, ge=0)

    def holds(self, batch_id: str) -> bool:
        """Whether the batch was read for this snapshot."""
        partition, number = batch_position(batch_id)
        return self.through.get(str(partition), 0) >= number


class ModelVersion(LogRecord):
    """One immutable, content-addressed version, published at most once and only complete."""

    event_type = "loopwright.version"
    ref: VersionRef
    number: int | None = Field(None, ge=1, description="absent for the base")
    base: VersionName
    base_model: str = Field(description="the Hugging Face id or folder name of the base, for people")
    run_id: Id | None = None
    dataset: DatasetRef | None = None
    gate: GateReport | None = None
    reproducible: bool = True
    created_at: AwareDatetime


class RolloutRecord(LogRecord):
    """The desired state of a line. `seq` only grows; the newest record is the truth."""

    event_type = "loopwright.rollout"
    seq: int = Field(ge=1)
    action: Literal["adopt_base", "promote", "rollback", "canary", "pause", "resume", "pin"]
    stable: VersionRef
    previous: VersionRef | None = Field(None, description="the stable before this one: where a rollback goes")
    canary: VersionRef | None = None
    share: float = Field(0.0, ge=0, le=1)
    paused: bool = False
    reason: str = Field(min_length=1, max_length=1024)
    command_id: Id | None = None
    decided_at: AwareDatetime


# --- operator.commands, operator.results ------------------------------------------------------------------------


class CommandBase(LogRecord):
    """An order of a person. `executor` names the service that carries it out and answers."""

    event_type = "loopwright.command"
    command_id: Id
    issued_by: str = Field("operator", max_length=128)
    issued_at: AwareDatetime


class Promote(CommandBase):
    kind: Literal["promote"] = "promote"
    version: VersionName


class Rollback(CommandBase):
    """Back to `version`, or to the stable before the present one."""

    kind: Literal["rollback"] = "rollback"
    version: VersionName | None = None


class Pause(CommandBase):
    kind: Literal["pause"] = "pause"


class Resume(CommandBase):
    kind: Literal["resume"] = "resume"


class Pin(CommandBase):
    """Serve this version, whatever its verdict, and take no other until `resume`."""

    kind: Literal["pin"] = "pin"
    version: VersionName


class TrainNow(CommandBase):
    """A run with anything usable, whatever the hour."""

    kind: Literal["train_now"] = "train_now"
    dry_run: bool = Field(False, description="only say what would be trained, and what is missing")


class ExportDataset(CommandBase):
    """Write all that may train as files to take elsewhere; the result says where they are."""

    kind: Literal["export_dataset"] = "export_dataset"


class Release(CommandBase):
    """Let what is held back of these examples train after all, from the next run on: what of it can be released."""

    kind: Literal["release"] = "release"
    response_ids: tuple[Id, ...] = Field(min_length=1, max_length=1000)


class Reproduce(CommandBase):
    """Train a version again from its snapshot, in a folder that goes after, and say whether the same came of it."""

    kind: Literal["reproduce"] = "reproduce"
    version: VersionName


class CollectGarbage(CommandBase):
    """Take out of the artifact store what no rollout, candidate, recent version or run needs."""

    kind: Literal["collect_garbage"] = "collect_garbage"
    dry_run: bool = Field(False, description="only say what would go")


class Replay(CommandBase):
    """Send dead letters (by their positions) to their topic again."""

    kind: Literal["replay"] = "replay"
    positions: tuple[str, ...] = Field(
        min_length=1, max_length=1000, description="`<partition>-<offset>` each"
    )


Command = Annotated[
    Promote
    | Rollback
    | Pause
    | Resume
    | Pin
    | TrainNow
    | ExportDataset
    | Release
    | Reproduce
    | CollectGarbage
    | Replay,
    Field(discriminator="kind"),
]
COMMAND: TypeAdapter[Command] = TypeAdapter(Command)

EXECUTORS: dict[str, str] = {
    "promote": "rollout",
    "rollback": "rollout",
    "pause": "rollout",
    "resume": "rollout",
    "pin": "rollout",
    "train_now": "trainer",
    "export_dataset": "trainer",
    "release": "trainer",
    "reproduce": "trainer",
    "collect_garbage": "trainer",
    "replay": "feedback",
}
"""Which service carries out a command. The door refuses kinds that nobody executes yet."""


class Replayed(Part):
    """What a replay sent back to its topics. A dead letter is in at most one of these."""

    positions: tuple[str, ...] = Field((), max_length=1000)
    topics: dict[str, int] = Field(default_factory=dict, description="records by topic")


class CommandResult(LogRecord):
    event_type = "loopwright.command.result"
    command_id: Id
    status: Literal["done", "refused", "failed"]
    message: str = Field(max_length=2048)
    executor: str
    finished_at: AwareDatetime
    replayed: Replayed | None = Field(None, description="of a `replay` alone")
