"""Operator commands of one line: stored when they arrive, decided once, their results published once."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

from services.trainer.versions.publish import SERVICE, VersionLog
from shared.cloudevents import cloudevent
from shared.commands import (
    CollectGarbage,
    Command,
    CommandResult,
    ExportDataset,
    GateAgain,
    Release,
    Reproduce,
    TrainNow,
)
from shared.events import from_ms
from shared.ports import Clock, Publisher
from shared.topics import OPERATOR_RESULTS

CommandStatus = Literal["done", "refused", "failed"]
ACK_TIMEOUT_S: Final = 15.0
MAX_MESSAGE: Final = 2048
"""Maximum length of a result's message, in characters. Longer ones are cut."""


class CommandKind(StrEnum):
    """What a command asks the trainer to do."""

    TRAIN_NOW = "train_now"
    TRAIN_AGAIN = "train_again"
    """Train also if nothing is new."""
    DRY_RUN = "dry_run"
    """Report what a run would train."""
    EXPORT_DATASET = "export_dataset"
    RELEASE = "release"
    """Release responses from quarantine."""
    REPRODUCE = "reproduce"
    """Train a version again and compare the weights."""
    GATE_AGAIN = "gate_again"
    """Evaluate a version against the present stable version."""
    COLLECT_GARBAGE = "collect_garbage"
    COLLECT_GARBAGE_DRY_RUN = "collect_garbage_dry_run"
    """Report which artifacts garbage collection would delete."""


@dataclass(frozen=True, slots=True)
class CommandTable:
    """The commands of one line: the trainer's table of them, and their results on `operator.results`.

    A command is pending until it has a status, and its result is unpublished until the log has it. Both survive a
    restart.
    """

    line: str
    db: sqlite3.Connection
    versions: VersionLog
    publisher: Publisher
    clock: Clock

    def store(self, command: Command) -> None:
        """Store a command, inside the caller's transaction. Ignores commands of other lines and services."""
        if command.line != self.line:
            return
        match command:
            case TrainNow():
                train = CommandKind.TRAIN_AGAIN if command.again else CommandKind.TRAIN_NOW
                self._insert(command, CommandKind.DRY_RUN if command.dry_run else train)
            case ExportDataset():
                self._insert(command, CommandKind.EXPORT_DATASET)
            case Release():
                self._insert(command, CommandKind.RELEASE)
                self.db.executemany(
                    "INSERT OR IGNORE INTO release_orders VALUES (?, ?)",
                    [(command.command_id, response_id) for response_id in command.response_ids],
                )
            case Reproduce() | GateAgain():
                again = isinstance(command, GateAgain)
                self._insert(command, CommandKind.GATE_AGAIN if again else CommandKind.REPRODUCE)
                self.db.execute(
                    "INSERT OR IGNORE INTO command_versions VALUES (?, ?)",
                    (command.command_id, command.version),
                )
            case CollectGarbage():
                dry = command.dry_run
                self._insert(
                    command, CommandKind.COLLECT_GARBAGE_DRY_RUN if dry else CommandKind.COLLECT_GARBAGE
                )

    def _insert(self, command: Command, kind: CommandKind) -> None:
        self.db.execute(
            "INSERT OR IGNORE INTO commands (command_id, kind) VALUES (?, ?)", (command.command_id, kind)
        )

    def pending(self, kind: CommandKind, *, skip_answered: bool = True) -> list[str]:
        """Return the ids of commands of this kind that are not decided, oldest first.

        Commands that have a result on the log are marked as answered and left out: they were executed before the
        table was lost. With `skip_answered=False` they are included, for commands that rebuild the table's content.
        """
        rows = self.db.execute(
            "SELECT command_id FROM commands WHERE answered = 0 AND status IS NULL AND kind = ? ORDER BY rowid",
            (kind,),
        )
        pending = [command_id for (command_id,) in rows]
        if not pending or not skip_answered:
            return pending
        answered = self.versions.answered_commands()
        for command_id in pending:
            if command_id in answered:
                self._mark_answered(command_id)
        return [command_id for command_id in pending if command_id not in answered]

    def responses_to_release(self, command_id: str) -> list[str]:
        """Return the ids of the responses that a release command names."""
        rows = self.db.execute("SELECT response_id FROM release_orders WHERE command_id = ?", (command_id,))
        return [response_id for (response_id,) in rows]

    def version_named_by(self, command_id: str) -> str:
        """Return the version that a reproduce or gate_again command names."""
        rows = self.db.execute("SELECT version FROM command_versions WHERE command_id = ?", (command_id,))
        return str(rows.fetchone()[0])

    def decide(self, command_ids: Iterable[str], status: CommandStatus, message: str) -> None:
        """Store the results of commands, inside the caller's transaction. `publish_results` publishes them."""
        if len(message) > MAX_MESSAGE:
            message = message[: MAX_MESSAGE - 1] + "…"
        self.db.executemany(
            "UPDATE commands SET status = ?, message = ? WHERE command_id = ?",
            [(status, message, command_id) for command_id in command_ids],
        )

    def settle(self, command_ids: Sequence[str], status: CommandStatus, message: str) -> None:
        """Store the results of commands, in a separate transaction."""
        if command_ids:
            with self.db:
                self.decide(command_ids, status, message)

    def publish_results(self) -> None:
        """Publish the results that are not on the log yet, in the order of the commands.

        Raises `BrokerUnavailable`; the next call continues, and publishes no result twice.
        """
        rows = self.db.execute(
            "SELECT command_id, status, COALESCE(message, '') FROM commands "
            "WHERE answered = 0 AND status IS NOT NULL ORDER BY rowid"
        ).fetchall()
        answered = self.versions.answered_commands() if rows else set()
        for command_id, status, message in rows:
            if command_id not in answered:
                self._publish(command_id, status, message)
            self._mark_answered(command_id)

    def _publish(self, command_id: str, status: CommandStatus, message: str) -> None:
        now = from_ms(self.clock.now_ms())
        result = CommandResult(
            line=self.line,
            command_id=command_id,
            status=status,
            message=message,
            executor=SERVICE,
            finished_at=now,
        )
        record = cloudevent(
            OPERATOR_RESULTS, command_id, result, source=SERVICE, ce_id=command_id, at=now, partition=0
        )
        self.publisher.publish(record).result(ACK_TIMEOUT_S)

    def _mark_answered(self, command_id: str) -> None:
        with self.db:
            self.db.execute("UPDATE commands SET answered = 1 WHERE command_id = ?", (command_id,))
