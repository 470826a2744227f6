"""What the console shows, folded from the log. Pure: records in, state out.

Each part keeps the newest (or the first) of its kind by the record's own order, so that the order in which topics are
read does not matter, and reading a record twice changes nothing but the counts, which are by record.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from shared.commands import COMMAND, Command, CommandResult
from shared.dead_letters import DeadLetterOrigin, parse_origin
from shared.errors import Rejected
from shared.events import ErasureReport, LogRecord, Outcome, OutcomeKind, parse_union
from shared.records import Record
from shared.topics import (
    DEAD_LETTERS,
    ERASURE_REPORTS,
    FEEDBACK_EVENTS,
    FEEDBACK_OUTCOMES,
    MODEL_ROLLOUT,
    MODEL_VERSIONS,
    OPERATOR_COMMANDS,
    OPERATOR_RESULTS,
    TRAINING_BATCHES,
)
from shared.versions import ModelVersion, RolloutRecord

FOLLOWED_TOPICS = (
    FEEDBACK_OUTCOMES,
    TRAINING_BATCHES,
    MODEL_VERSIONS,
    MODEL_ROLLOUT,
    OPERATOR_COMMANDS,
    OPERATOR_RESULTS,
    DEAD_LETTERS,
    ERASURE_REPORTS,
)

MAX_DEAD_LETTERS = 50


class BatchSize(LogRecord):
    """What the console reads of a `Batch`: not its examples, only how many."""

    event_type = "loopwright.batch"
    batch_id: str
    rewrite: int = 0
    examples: list[Any]


class ErasedFrom(LogRecord):
    """What the console reads of an `ErasureReport`: not whose it was."""

    event_type = ErasureReport.event_type
    versions: tuple[str, ...] = ()


class OutcomeCount(LogRecord):
    """What the console reads of an `Outcome`."""

    event_type = Outcome.event_type
    outcome: OutcomeKind


@dataclass
class Projection:
    """The state. `apply` is the only writer."""

    ledger: Counter[str] = field(default_factory=Counter)
    """Outcome -> events, over all lines, dead letters among them until they are replayed."""
    dead_letters: int = 0
    letters: deque[tuple[int, DeadLetterOrigin]] = field(
        default_factory=lambda: deque(maxlen=MAX_DEAD_LETTERS)
    )
    """(append time in ms, where it came from) of the last dead letters that were read."""
    unreadable: int = 0
    """Records that could not be read: shown, for they mean that the rest may be wrong."""
    batches: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    """line -> batch_id -> (rewrite, examples)"""
    versions: dict[str, dict[str, ModelVersion]] = field(default_factory=dict)
    """line -> version -> its record"""
    erased: set[str] = field(default_factory=set)
    """Versions that were trained from what was erased since: their snapshots are whole no more."""
    rollout: dict[str, dict[int, RolloutRecord]] = field(default_factory=dict)
    """line -> seq -> its record"""
    commands: dict[str, Command] = field(default_factory=dict)
    results: dict[str, CommandResult] = field(default_factory=dict)
    replayed: dict[str, str] = field(default_factory=dict)
    """Place of a dead letter that went back -> the command by which."""
    sent_again: Counter[str] = field(default_factory=Counter)
    """Topic -> records on it that were there before: its dead letters that went back."""

    def apply(self, records: Iterable[Record]) -> None:
        for record in records:
            fold = _FOLDS.get(record.topic)
            if fold is None or (record.value is None and record.topic != DEAD_LETTERS.name):
                continue
            try:
                fold(self, record)
            except Rejected:
                self.unreadable += 1

    def add_command(self, command: Command) -> None:
        """Also called for one that was just acknowledged, so that whoever sent it finds it."""
        self.commands.setdefault(command.command_id, command)

    def serving(self, line: str) -> RolloutRecord | None:
        """The newest rollout record of a line; None before its base is adopted."""
        records = self.rollout.get(line)
        return records[max(records)] if records else None

    def decided(self) -> int:
        """Feedback events that have their outcome."""
        return self.ledger.total()


def _outcome(state: Projection, record: Record) -> None:
    state.ledger[OutcomeCount.from_json(record.value).outcome] += 1


def _dead_letter(state: Projection, record: Record) -> None:
    state.dead_letters += 1
    origin = parse_origin(record)
    state.letters.append((record.timestamp, origin))
    if origin.topic == FEEDBACK_EVENTS.name:
        state.ledger[OutcomeKind.DEAD] += 1


def _batch(state: Projection, record: Record) -> None:
    batch = BatchSize.from_json(record.value)
    known = state.batches.setdefault(batch.line, {})
    found = (batch.rewrite, len(batch.examples))
    known[batch.batch_id] = max(known.get(batch.batch_id, found), found, key=lambda size: size[0])


def _version(state: Projection, record: Record) -> None:
    version = ModelVersion.from_json(record.value)
    state.versions.setdefault(version.line, {})[version.ref.version] = version


def _erasure(state: Projection, record: Record) -> None:
    state.erased.update(ErasedFrom.from_json(record.value).versions)


def _decision(state: Projection, record: Record) -> None:
    decided = RolloutRecord.from_json(record.value)
    state.rollout.setdefault(decided.line, {}).setdefault(decided.seq, decided)


def _command(state: Projection, record: Record) -> None:
    state.add_command(parse_union(_COMMAND, record.value))


def _result(state: Projection, record: Record) -> None:
    result = CommandResult.from_json(record.value)
    if state.results.setdefault(result.command_id, result) is not result or result.replayed is None:
        return
    state.replayed.update(dict.fromkeys(result.replayed.positions, result.command_id))
    state.sent_again.update(result.replayed.topics)
    # These events are dead no more: what becomes of them is still to come, or has come meanwhile.
    state.ledger[OutcomeKind.DEAD] -= result.replayed.topics.get(FEEDBACK_EVENTS.name, 0)


_COMMAND: TypeAdapter[Command] = COMMAND
_FOLDS: dict[str, Callable[[Projection, Record], None]] = {
    FEEDBACK_OUTCOMES.name: _outcome,
    TRAINING_BATCHES.name: _batch,
    MODEL_VERSIONS.name: _version,
    ERASURE_REPORTS.name: _erasure,
    MODEL_ROLLOUT.name: _decision,
    OPERATOR_COMMANDS.name: _command,
    OPERATOR_RESULTS.name: _result,
    DEAD_LETTERS.name: _dead_letter,
}
