"""Operators' commands to this trainer: kept as they come, decided once, answered once."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from services.trainer.commands import quarantine_release
from services.trainer.core.recipe import CommentMode
from services.trainer.run import run_table
from services.trainer.versions.publish import SERVICE, VersionLog
from shared.cloudevents import cloudevent
from shared.commands import (
    CollectGarbage,
    Command,
    CommandResult,
    ExportDataset,
    Release,
    Reproduce,
    TrainNow,
)
from shared.events import from_ms
from shared.ports import Clock, Publisher
from shared.topics import OPERATOR_RESULTS

ACK_S = 15.0
STATUS: Final[dict[str, Literal["done", "refused", "failed"]]] = {"done": "done", "failed": "failed"}
MAX_MESSAGE = 2048
TRAIN, LOOK, EXPORT, RELEASE = "train_now", "dry_run", "export_dataset", "release"
REPRODUCE, COLLECT, LOOK_FOR_GARBAGE = "reproduce", "collect_garbage", "collect_garbage_dry_run"
"""What a command asks for: a run, only what a run would train, a dataset to take elsewhere, that what is held trains
after all, a version trained again, or an artifact store without what nothing needs (or only what that would be)."""


@dataclass(frozen=True, slots=True)
class CommandTable:
    """The commands of one line, in the trainer's table and on the log."""

    line: str
    db: sqlite3.Connection
    versions: VersionLog
    publisher: Publisher
    clock: Clock

    def keep(self, command: Command) -> None:
        """Inside the caller's transaction. What other services carry out is left alone."""
        if command.line != self.line:
            return
        if isinstance(command, TrainNow):
            run_table.note_command(self.db, command.command_id, LOOK if command.dry_run else TRAIN)
        elif isinstance(command, ExportDataset):
            run_table.note_command(self.db, command.command_id, EXPORT)
        elif isinstance(command, Release):
            run_table.note_command(self.db, command.command_id, RELEASE)
            quarantine_release.store_request(self.db, command.command_id, command.response_ids)
        elif isinstance(command, Reproduce):
            run_table.note_command(self.db, command.command_id, REPRODUCE)
            run_table.note_reproduction(self.db, command.command_id, command.version)
        elif isinstance(command, CollectGarbage):
            run_table.note_command(
                self.db, command.command_id, LOOK_FOR_GARBAGE if command.dry_run else COLLECT
            )

    def undecided(self, kind: str) -> list[str]:
        """Commands of this kind to act on; those that the log has a result of (from before this table was made) are
        put away."""
        open_ = run_table.undecided(self.db, kind)
        if not open_:
            return []
        known = self.versions.answered()
        for command_id in open_:
            if command_id in known:
                run_table.mark_answered(self.db, command_id)
        return [command_id for command_id in open_ if command_id not in known]

    def decide(self, command_ids: Iterable[str], status: str, message: str) -> None:
        """Inside the caller's transaction."""
        told = message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…"
        for command_id in command_ids:
            run_table.decide_command(self.db, command_id, status, told)

    def settle(self, command_ids: Sequence[str], status: str, message: str) -> None:
        """As `decide`, in a transaction of its own."""
        if command_ids:
            with self.db:
                self.decide(command_ids, status, message)

    def release(self, comments: CommentMode) -> bool:
        """Carries out the releases that wait; returns whether there were any. A table that was made anew follows those
        that have their result already, too: `answer` does not repeat it."""
        asked = run_table.undecided(self.db, RELEASE)
        for command_id in asked:
            with self.db:
                held = quarantine_release.releasable_now(self.db, comments)
                done, told = quarantine_release.release(
                    self.db, quarantine_release.requested_responses(self.db, command_id), held
                )
                self.decide([command_id], "done" if done else "refused", told)
        return bool(asked)

    def answer(self) -> None:
        """Publishes results that were decided, each once: after a crash the log says which are there. Raises
        `BrokerUnavailable`."""
        decided = run_table.decided(self.db)
        known = self.versions.answered() if decided else set()
        for command_id, status, message in decided:
            if command_id not in known:
                self._publish(command_id, status, message)
            run_table.mark_answered(self.db, command_id)

    def _publish(self, command_id: str, status: str, message: str) -> None:
        now = from_ms(self.clock.now_ms())
        result = CommandResult(
            line=self.line,
            command_id=command_id,
            status=STATUS.get(status, "refused"),
            message=message,
            executor=SERVICE,
            finished_at=now,
        )
        record = cloudevent(
            OPERATOR_RESULTS, command_id, result, source=SERVICE, ce_id=command_id, at=now, partition=0
        )
        self.publisher.publish(record).result(ACK_S)
