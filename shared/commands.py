"""Operator commands and their results: the records of `operator.commands` and `operator.results`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, TypeAdapter

from shared.events import Id, LogRecord, Part, VersionName, canonical_json, sha256


class CommandBase(LogRecord):
    """A command of an operator. `EXECUTORS` names the service that executes it and publishes the result."""

    event_type = "loopwright.command"
    command_id: Id
    issued_by: str = Field("operator", max_length=128)
    issued_at: AwareDatetime

    def content_digest(self) -> str:
        """Return a digest of what the command asks for, without who issued it, when, and under which condition.

        Two commands with one id are the same command if their digests are equal, and a conflict otherwise.
        """
        content = self.model_dump(
            mode="json", exclude_none=True, exclude={"issued_by", "issued_at", "leaving", "schema_version"}
        )
        return sha256(canonical_json(content))


class Promote(CommandBase):
    """Make this version stable."""

    kind: Literal["promote"] = "promote"
    version: VersionName


class Rollback(CommandBase):
    """Return to `version`, or to the stable version before the present one. Repeated rollbacks walk back further."""

    kind: Literal["rollback"] = "rollback"
    version: VersionName | None = None
    leaving: VersionName | None = Field(
        None, description="The version to roll back from. If another one serves, the command changes nothing."
    )


class Pause(CommandBase):
    """Stop automatic promotions until `resume`."""

    kind: Literal["pause"] = "pause"


class Resume(CommandBase):
    """Allow automatic promotions again, and remove a pin."""

    kind: Literal["resume"] = "resume"


class Pin(CommandBase):
    """Serve this version regardless of its verdict, and no other until `resume`."""

    kind: Literal["pin"] = "pin"
    version: VersionName


class TrainNow(CommandBase):
    """Start a run now, with any number of usable new examples and also in quiet hours."""

    kind: Literal["train_now"] = "train_now"
    dry_run: bool = Field(False, description="Only report what would be trained, and what is missing.")
    again: bool = Field(
        False,
        description="Train also if nothing is new: the same data with the present settings, for example after a run "
        "that failed or was inconclusive.",
    )


class ExportDataset(CommandBase):
    """Export the collected dataset as files. The result names their folder."""

    kind: Literal["export_dataset"] = "export_dataset"


class Release(CommandBase):
    """Release these examples from quarantine, where their reason allows it. They train from the next run on."""

    kind: Literal["release"] = "release"
    response_ids: tuple[Id, ...] = Field(min_length=1, max_length=1000)


class Reproduce(CommandBase):
    """Train a version again from its snapshot in a temporary folder, and report whether the result is the same."""

    kind: Literal["reproduce"] = "reproduce"
    version: VersionName


class GateAgain(CommandBase):
    """Evaluate a version against the present stable version, and publish the new gate report.

    The rollout issues it for a version that passed its gate against a version that no longer serves, and the trainer
    for one whose gate had too little feedback, once more has arrived.
    """

    kind: Literal["gate_again"] = "gate_again"
    version: VersionName
    reason: str | None = Field(None, max_length=500, description="Why a service issued it.")


class CollectGarbage(CommandBase):
    """Remove artifacts that no rollout record, candidate, recent version or run needs."""

    kind: Literal["collect_garbage"] = "collect_garbage"
    dry_run: bool = Field(False, description="Only report what would be removed.")


class Replay(CommandBase):
    """Send dead letters, named by position, to their topics again."""

    kind: Literal["replay"] = "replay"
    positions: tuple[str, ...] = Field(
        min_length=1, max_length=1000, description="Positions in dead.letters, each `<partition>-<offset>`."
    )


SKIPPING_SERVICES: dict[str, str] = {
    "chat.responses": "processor",
    "feedback.events": "processor",
    "erasure.requests": "processor",
    "model.versions": "rollout",
    "operator.commands": "rollout",
    "response.samples": "rollout",
    "feedback.tallies": "rollout",
}
"""The service whose partitions can halt at a record of each topic, and which executes a `skip` of that record."""


class Skip(CommandBase):
    """Let a halted partition continue without the record at which it stopped. The record becomes a dead letter."""

    kind: Literal["skip"] = "skip"
    topic: Literal[
        "chat.responses",
        "feedback.events",
        "erasure.requests",
        "model.versions",
        "operator.commands",
        "response.samples",
        "feedback.tallies",
    ]
    partition: int = Field(ge=0, lt=1024)
    offset: int = Field(ge=0, lt=2**63, description="Offset of the record, as `/readyz` names it.")
    reason: str = Field(min_length=1, max_length=500, description="Why the record may be skipped.")


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
    | GateAgain
    | CollectGarbage
    | Replay
    | Skip,
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
    "gate_again": "trainer",
    "collect_garbage": "trainer",
    "replay": "feedback",
    "skip": "processor",
}
"""The service that executes each kind of command. The console API refuses kinds without an executor.

A `skip` of a record of the rollout's inputs is executed by the rollout (`SKIPPING_SERVICES`)."""


class Replayed(Part):
    """Dead letters that a replay has sent to their topics. A dead letter is replayed at most once."""

    positions: tuple[str, ...] = Field((), max_length=1000)
    topics: dict[str, int] = Field(default_factory=dict, description="Number of records by topic.")


class CommandResult(LogRecord):
    """Result of one command, published by the service that executed it."""

    event_type = "loopwright.command.result"
    command_id: Id
    status: Literal["done", "refused", "failed"]
    message: str = Field(max_length=2048)
    executor: str
    finished_at: AwareDatetime
    replayed: Replayed | None = Field(None, description="Set for a `replay`.")
