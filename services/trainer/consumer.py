"""What the trainer reads: batches, erasures and commands, kept with the positions behind them in one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from services.trainer.commands.command_table import ACK_S, CommandTable
from services.trainer.dataset import batch_table
from services.trainer.erasure import requests
from services.trainer.versions.publish import SERVICE
from shared.commands import COMMAND, Command
from shared.dead_letters import DeadLetterRate, make_dead_letter
from shared.errors import DeadLetterFlood, LoopwrightError, Rejected
from shared.events import Batch, ErasureReport, parse_union
from shared.ports import LogReader, Publisher
from shared.records import Record
from shared.telemetry import DEAD_LETTERED
from shared.topics import (
    DEAD_LETTERS,
    ERASURE_REPORTS,
    MAX_MESSAGE_BYTES,
    OPERATOR_COMMANDS,
    TRAINING_BATCHES,
)

TOPICS_READ = (TRAINING_BATCHES.name, OPERATOR_COMMANDS.name, ERASURE_REPORTS.name)
log = structlog.get_logger(__name__)
Told = Batch | Command | ErasureReport


@dataclass(slots=True)
class TrainerConsumer:
    """One line's reader and the table behind it."""

    line: str
    db: sqlite3.Connection
    reader: LogReader
    publisher: Publisher
    orders: CommandTable
    rate: DeadLetterRate
    _unkept: list[Told] = field(default_factory=list)
    """Read and not in the table yet: a disk that was full did not take them."""

    def take(self, records: Sequence[Record]) -> bool:
        """Keeps what was read and the positions behind it; what cannot be read is a dead letter first (acknowledged
        before the position moves past it). Returns whether batches of this line came. Where the table raises, nothing
        is lost: the next call keeps these first."""
        for record in records:
            told = self._read(record)
            self._unkept += [] if told is None else [told]
            self.rate.add_processed(1)
        if not records and not self._unkept:
            return False
        with self.db:
            changed = [self._keep(told) for told in self._unkept]
            batch_table.store_positions(self.db, self.reader.positions())
        self._unkept.clear()
        return any(changed)

    def poll(self, seconds: float) -> list[Record]:
        """The next records; none while earlier ones could not be kept."""
        return [] if self._unkept else self.reader.poll(seconds)

    def _keep(self, told: Told) -> bool:
        if isinstance(told, ErasureReport):
            # Of all lines: who is erased is a user of the deployment.
            requests.store_report(self.db, told, self.line)
        elif isinstance(told, Batch):
            return told.line == self.line and batch_table.store_batch(self.db, told)
        else:
            self.orders.keep(told)
        return False

    def _read(self, record: Record) -> Told | None:
        try:
            if record.topic == TRAINING_BATCHES.name:
                return Batch.from_json(record.value)
            if record.topic == ERASURE_REPORTS.name:
                return ErasureReport.from_json(record.value)
            return parse_union(COMMAND, record.value)
        except Rejected as error:
            self._bury(record, error)
            return None

    def _bury(self, record: Record, error: LoopwrightError) -> None:
        letter = make_dead_letter(DEAD_LETTERS.name, record, error, SERVICE, MAX_MESSAGE_BYTES)
        self.publisher.publish(letter).result(ACK_S)
        DEAD_LETTERED.labels(SERVICE, error.code).inc()
        log.warning("dead_letter", topic=record.topic, partition=record.partition, offset=record.offset)
        if self.rate.add_dead_letter():
            raise DeadLetterFlood(
                f"too many records of {record.topic} cannot be read: see {DEAD_LETTERS.name}"
            )
