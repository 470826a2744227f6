"""State of the console, folded from the log.

Each part keeps the newest (or the first) record of its kind by the records' own order, so the order in which topics are
read does not matter. Reading a record again changes nothing but the counters, which count records.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import TypeAdapter

from services.console.core.ledger import Ledger
from shared.commands import COMMAND, Command, CommandResult
from shared.dead_letters import DeadLetterOrigin, parse_origin
from shared.errors import Rejected
from shared.events import ErasureReport, LogRecord, Outcome, OutcomeKind, parse_union
from shared.records import Record
from shared.serving import Replicas, ServingReport
from shared.topics import (
    DEAD_LETTERS,
    ERASURE_REPORTS,
    FEEDBACK_EVENTS,
    FEEDBACK_OUTCOMES,
    MODEL_CANARY,
    MODEL_ROLLOUT,
    MODEL_SERVING,
    MODEL_VERSIONS,
    OPERATOR_COMMANDS,
    OPERATOR_RESULTS,
    TRAINING_BATCHES,
)
from shared.versions import CanaryStatus, ModelVersion, RolloutRecord

FOLLOWED_TOPICS: Final = (
    FEEDBACK_OUTCOMES,
    TRAINING_BATCHES,
    MODEL_VERSIONS,
    MODEL_ROLLOUT,
    MODEL_CANARY,
    MODEL_SERVING,
    OPERATOR_COMMANDS,
    OPERATOR_RESULTS,
    DEAD_LETTERS,
    ERASURE_REPORTS,
)

MAX_DEAD_LETTERS: Final = 50


class BatchSummary(LogRecord):
    """The fields of `Batch` that the console reads. Examples are only counted, not parsed."""

    event_type = "loopwright.batch"
    batch_id: str
    rewrite: int = 0
    examples: list[Any]


class ErasureSummary(LogRecord):
    """The fields of `ErasureReport` that the console reads. The user is not among them."""

    event_type = ErasureReport.event_type
    versions: tuple[str, ...] = ()


class OutcomeSummary(LogRecord):
    """The fields of `Outcome` that the console reads."""

    event_type = Outcome.event_type
    event_id: str | None = None
    outcome: OutcomeKind
    reason: str | None = None


@dataclass
class Projection:
    """State of the console. Only `apply` and `add_command` change it."""

    ledger: Ledger = field(default_factory=Ledger)
    """Feedback events by outcome, over all lines."""
    dead_letters: int = 0
    newest_dead_letters: deque[tuple[int, DeadLetterOrigin]] = field(
        default_factory=lambda: deque(maxlen=MAX_DEAD_LETTERS)
    )
    """(append time in ms, origin) of the dead letters that were read last."""
    unreadable: int = 0
    """Records that could not be parsed. The console shows this count, because other figures may then be wrong."""
    batches: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    """Line -> batch_id -> (rewrite, examples)."""
    versions: dict[str, dict[str, ModelVersion]] = field(default_factory=dict)
    """Line -> version -> its record."""
    erased_versions: set[str] = field(default_factory=set)
    """Versions trained on data that was erased later, so their snapshots are incomplete."""
    rollout: dict[str, dict[int, RolloutRecord]] = field(default_factory=dict)
    """Line -> seq -> its record."""
    canaries: dict[str, CanaryStatus] = field(default_factory=dict)
    """Line -> progress of its newest canary."""
    replicas: Replicas = field(default_factory=Replicas)
    """What the replicas of inference serve, by their own reports."""
    commands: dict[str, Command] = field(default_factory=dict)
    results: dict[str, CommandResult] = field(default_factory=dict)
    replayed: dict[str, str] = field(default_factory=dict)
    """Position of a replayed dead letter -> the id of the command that replayed it."""
    replayed_by_topic: Counter[str] = field(default_factory=Counter)
    """Topic -> its records that are replays of dead letters, and so have been on the topic before."""

    def apply(self, records: Iterable[Record]) -> None:
        """Fold records of the followed topics into the state. Records that cannot be parsed are counted."""
        for record in records:
            fold = _FOLDS.get(record.topic)
            if fold is None or (record.value is None and record.topic not in _FOLDS_OF_EMPTY_RECORDS):
                continue
            try:
                fold(self, record)
            except Rejected:
                self.unreadable += 1

    def add_command(self, command: Command) -> None:
        """Add a command. Also called right after it was acknowledged, so that its sender can ask for it at once."""
        self.commands.setdefault(command.command_id, command)

    def newest_rollout(self, line: str) -> RolloutRecord | None:
        """Return the newest rollout record of a line, or None before its base is adopted."""
        records = self.rollout.get(line)
        return records[max(records)] if records else None


def _fold_outcome(state: Projection, record: Record) -> None:
    outcome = OutcomeSummary.from_json(record.value)
    if outcome.event_id is None:
        state.ledger.add_refused_response(outcome.reason, record.timestamp)
    else:
        state.ledger.add(outcome.outcome, outcome.reason, record.timestamp)


def _fold_dead_letter(state: Projection, record: Record) -> None:
    state.dead_letters += 1
    origin = parse_origin(record)
    state.newest_dead_letters.append((record.timestamp, origin))
    if origin.topic == FEEDBACK_EVENTS.name:
        state.ledger.add_dead_letter(f"{record.partition}-{record.offset}", record.timestamp)


def _fold_batch(state: Projection, record: Record) -> None:
    batch = BatchSummary.from_json(record.value)
    batches = state.batches.setdefault(batch.line, {})
    size = (batch.rewrite, len(batch.examples))
    batches[batch.batch_id] = max(batches.get(batch.batch_id, size), size, key=lambda item: item[0])


def _fold_version(state: Projection, record: Record) -> None:
    version = ModelVersion.from_json(record.value)
    state.versions.setdefault(version.line, {})[version.ref.version] = version


def _fold_erasure(state: Projection, record: Record) -> None:
    state.erased_versions.update(ErasureSummary.from_json(record.value).versions)


def _fold_rollout(state: Projection, record: Record) -> None:
    rollout = RolloutRecord.from_json(record.value)
    state.rollout.setdefault(rollout.line, {}).setdefault(rollout.seq, rollout)


def _fold_canary(state: Projection, record: Record) -> None:
    status = CanaryStatus.from_json(record.value)
    known = state.canaries.get(status.line)
    if known is None or (status.seq, status.updated_at) >= (known.seq, known.updated_at):
        state.canaries[status.line] = status


def _fold_serving(state: Projection, record: Record) -> None:
    if record.value is None:
        state.replicas.remove((record.key or b"").decode())
    else:
        state.replicas.add(ServingReport.from_json(record.value), record.timestamp)


def _fold_command(state: Projection, record: Record) -> None:
    state.add_command(parse_union(_COMMAND, record.value))


def _fold_result(state: Projection, record: Record) -> None:
    result = CommandResult.from_json(record.value)
    if state.results.setdefault(result.command_id, result) is not result or result.replayed is None:
        return
    state.replayed.update(dict.fromkeys(result.replayed.positions, result.command_id))
    state.replayed_by_topic.update(result.replayed.topics)
    state.ledger.add_replay(result.replayed.positions)


_COMMAND: TypeAdapter[Command] = COMMAND
_FOLDS_OF_EMPTY_RECORDS = {DEAD_LETTERS.name, MODEL_SERVING.name}
_FOLDS: dict[str, Callable[[Projection, Record], None]] = {
    FEEDBACK_OUTCOMES.name: _fold_outcome,
    TRAINING_BATCHES.name: _fold_batch,
    MODEL_VERSIONS.name: _fold_version,
    ERASURE_REPORTS.name: _fold_erasure,
    MODEL_ROLLOUT.name: _fold_rollout,
    MODEL_CANARY.name: _fold_canary,
    MODEL_SERVING.name: _fold_serving,
    OPERATOR_COMMANDS.name: _fold_command,
    OPERATOR_RESULTS.name: _fold_result,
    DEAD_LETTERS.name: _fold_dead_letter,
}
