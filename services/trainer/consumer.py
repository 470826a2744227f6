"""Consumes batches, commands and erasure reports into the trainer's database, together with the positions read."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from services.trainer.commands.command_table import ACK_TIMEOUT_S, CommandTable
from services.trainer.dataset import batch_table
from services.trainer.erasure import requests
from services.trainer.new_data import NewDataCounter
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

TOPICS_READ: Final = (TRAINING_BATCHES.name, OPERATOR_COMMANDS.name, ERASURE_REPORTS.name)
Message = Batch | Command | ErasureReport
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class TrainerConsumer:
    """Consumer of one line. Stores messages and positions in one transaction, so each message counts once."""

    line: str
    db: sqlite3.Connection
    reader: LogReader
    publisher: Publisher
    commands: CommandTable
    counter: NewDataCounter
    rate: DeadLetterRate
    _unstored: list[Message] = field(default_factory=list)
    """Messages that were read but not stored, because the database raised (a full disk)."""

    def poll(self, seconds: float) -> list[Record]:
        """Return the next records, or none while earlier messages are not stored."""
        return [] if self._unstored else self.reader.poll(seconds)

    def store(self, records: Sequence[Record]) -> None:
        """Store records and positions, and count the batches of this line.

        A record that cannot be parsed becomes a dead letter, which is acknowledged before the position moves past it.
        If the database raises, nothing is lost: the next call stores the same messages first.
        """
        for record in records:
            message = self._parse(record)
            self._unstored += [] if message is None else [message]
            self.rate.add_processed(1)
        if not records and not self._unstored:
            return
        with self.db:
            with self.counter.counting():
                for message in self._unstored:
                    self._store(message)
            batch_table.store_positions(self.db, self.reader.positions())
        self._unstored.clear()

    def _store(self, message: Message) -> None:
        if isinstance(message, ErasureReport):
            # Of every line: an erasure concerns a user of the whole deployment.
            requests.store_report(self.db, message, self.line)
        elif not isinstance(message, Batch):
            self.commands.store(message)
        elif message.line == self.line:
            batch_table.store_batch(self.db, message)

    def _parse(self, record: Record) -> Message | None:
        try:
            if record.topic == TRAINING_BATCHES.name:
                return Batch.from_json(record.value)
            if record.topic == ERASURE_REPORTS.name:
                return ErasureReport.from_json(record.value)
            return parse_union(COMMAND, record.value)
        except Rejected as error:
            self._publish_dead_letter(record, error)
            return None

    def _publish_dead_letter(self, record: Record, error: LoopwrightError) -> None:
        letter = make_dead_letter(DEAD_LETTERS.name, record, error, SERVICE, MAX_MESSAGE_BYTES)
        self.publisher.publish(letter).result(ACK_TIMEOUT_S)
        DEAD_LETTERED.labels(SERVICE, error.code).inc()
        log.warning("dead_letter", topic=record.topic, partition=record.partition, offset=record.offset)
        if self.rate.add_failure():
            raise DeadLetterFlood(
                f"too many records of {record.topic} cannot be parsed: {DEAD_LETTERS.name} has each with its error"
            )
