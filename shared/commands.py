"""Operator commands and their results: the records of `operator.commands` and `operator.results`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, TypeAdapter

from shared.events import Id, LogRecord, Part, VersionName


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
