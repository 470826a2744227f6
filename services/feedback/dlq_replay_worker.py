"""Worker that executes `replay` commands: sends dead letters back to the topics that this service writes, each once.

`docs/decisions/dead-letters.md` has the reasons. In short: only one process executes commands, a command that has a
result is never executed again, and before anything is sent, the log is searched for what an interrupted attempt of the
same command has already sent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final

import structlog

from services.feedback.command_consumer import CommandConsumer
from services.feedback.core.dlq_replay_rules import (
    MAX_COMMAND_AGE_MS,
    NO_PARTITION,
    NOT_FOUND,
    TOO_OLD,
    ReplayReport,
    command_result,
    parse_positions,
    skip_reason,
)
from services.feedback.settings import SERVICE
from shared.cloudevents import cloudevent, traceparent_of
from shared.commands import COMMAND, EXECUTORS, CommandResult, Replay
from shared.dead_letter_replay import (
    DeadLetter,
    DeadLetterPosition,
    make_replay_record,
    parse_dead_letter,
    parse_replay_mark,
)
from shared.errors import BrokerUnavailable, LoopwrightError, Rejected
from shared.events import from_ms, parse_union
from shared.ports import Acked, Clock, LogRanges, LogReader, Publisher
from shared.records import Record
from shared.topics import DEAD_LETTERS, OPERATOR_RESULTS

POLL_S: Final = 0.5
STOP_S: Final = 20.0
MAX_IN_MEMORY: Final = 20
"""Dead letters in memory at a time; each has at most a megabyte."""
MAX_GAP: Final = 200
"""Dead letters at most this many offsets apart are read in one range."""
MAX_CLOCK_SKEW_MS: Final = 60_000
"""How much the brokers' clocks may differ: records that a command sent are searched for from this long before it."""
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ReplayTarget:
    """A topic that a command sends dead letters back to."""

    partitions: frozenset[int]
    sent: frozenset[str]
    """Positions of the dead letters that an interrupted attempt of the command has already sent."""


@dataclass
class DeadLetterReplayer:
    """Executes `replay` commands until it is stopped. `run` is for one thread."""

    open_consumer: Callable[[], CommandConsumer]
    open_results: Callable[[], LogReader]
    """Opens a reader of `operator.results` from its beginning."""
    ranges: LogRanges
    publisher: Publisher
    clock: Clock
    ack_timeout_s: float
    """Time after which `publisher` knows whether a record arrived, in seconds."""
    executed: set[str] = field(default_factory=set)
    """Ids of the commands that have a result."""
    replayed: set[str] = field(default_factory=set)
    """Positions of the dead letters that any command has sent back."""

    def run(self, stopping: threading.Event) -> None:
        """Execute commands until `stopping` is set.

        After a failure it starts over, but only when no record sent before can still be on its way.
        """
        while not stopping.is_set():
            try:
                self._consume(stopping)
            except LoopwrightError as error:
                log.warning("replay_interrupted", code=error.code, error=str(error))
                stopping.wait(self.ack_timeout_s + 1)

    def _consume(self, stopping: threading.Event) -> None:
        consumer = self.open_consumer()
        try:
            while not stopping.is_set():
                records = consumer.poll(POLL_S)
                if consumer.newly_assigned():
                    self._read_results()
                for record in records:
                    self.execute(record)
                    consumer.commit(record)
        finally:
            consumer.close()

    def _read_results(self) -> None:
        """Learn what other processes, and earlier ones, have executed."""
        reader = self.open_results()
        try:
            while not reader.at_end():
                for record in reader.poll(POLL_S):
                    self._add_result(record)
        finally:
            reader.close()

    def _add_result(self, record: Record) -> None:
        try:
            result = CommandResult.from_json(record.value)
        except Rejected as error:
            _log_unreadable(record, error)
            return
        self._note(result)

    def _note(self, result: CommandResult) -> None:
        self.executed.add(result.command_id)
        self.replayed.update(result.replayed.positions if result.replayed else ())

    # --- one command ---

    def execute(self, record: Record) -> None:
        """Execute a `replay` command that has no result yet. Other commands are ignored.

        Raises:
            Retryable: if the command could not be finished; it must be delivered again.

        """
        try:
            command = parse_union(COMMAND, record.value)
        except (
            Rejected
        ) as error:  # the executors' readers write one dead letter for it; no second one is needed
            _log_unreadable(record, error)
            return
        if not isinstance(command, Replay) or EXECUTORS.get(command.kind) != SERVICE:
            return
        if command.command_id in self.executed:
            return
        now_ms = self.clock.now_ms()
        report = self._replay(command, record, too_old=now_ms - record.timestamp > MAX_COMMAND_AGE_MS)
        self._publish_result(command_result(command, report, SERVICE, from_ms(now_ms)), record)

    def _replay(self, command: Replay, record: Record, *, too_old: bool) -> ReplayReport:
        """Send back what can be sent. If the command is too old, only report what an earlier attempt has sent."""
        report = ReplayReport()
        targets: dict[str, ReplayTarget] = {}
        positions = parse_positions(command.positions, report)
        for start in range(0, len(positions), MAX_IN_MEMORY):
            chunk = positions[start : start + MAX_IN_MEMORY]
            letters = self._read_letters(chunk)
            in_flight: list[tuple[DeadLetter, Future[Acked]]] = []
            for position in chunk:
                letter = letters.get(position)
                reason = skip_reason(letter, SERVICE, self.replayed)
                if letter is None or reason is not None:
                    report.skipped[reason or NOT_FOUND] += 1
                    continue
                topic = letter.origin.topic
                if topic not in targets:
                    targets[topic] = self._target(command, topic, record.timestamp)
                if letter.origin_partition not in targets[topic].partitions:
                    report.skipped[NO_PARTITION] += 1
                elif str(position) in targets[topic].sent:
                    report.sent[str(position)] = topic
                elif too_old:
                    report.skipped[TOO_OLD] += 1
                else:
                    replay = make_replay_record(letter, command.command_id)
                    in_flight.append((letter, self.publisher.publish(replay)))
            self._await_acks(in_flight, report)
        return report

    def _read_letters(self, positions: Sequence[DeadLetterPosition]) -> dict[DeadLetterPosition, DeadLetter]:
        letters = {}
        wanted = set(positions)
        for partition, start, stop in _ranges_of(positions):
            for record in self.ranges.read(DEAD_LETTERS.name, {partition: (start, stop)}):
                if DeadLetterPosition(record.partition, record.offset) in wanted:
                    letter = parse_dead_letter(record)
                    letters[letter.position] = letter
        return letters

    def _target(self, command: Replay, topic: str, command_ms: int) -> ReplayTarget:
        bounds = self.ranges.bounds(topic)
        since = self.ranges.since(topic, command_ms - MAX_CLOCK_SKEW_MS)
        ranges = {partition: (since[partition], high) for partition, (_, high) in bounds.items()}
        marks = (parse_replay_mark(record.headers) for record in self.ranges.read(topic, ranges))
        sent = {mark[1] for mark in marks if mark is not None and mark[0] == command.command_id}
        return ReplayTarget(frozenset(bounds), frozenset(sent))

    def _await_acks(
        self, in_flight: Sequence[tuple[DeadLetter, Future[Acked]]], report: ReplayReport
    ) -> None:
        """Wait for all acknowledgements. Raise `BrokerUnavailable` if it is unknown whether a record arrived."""
        for letter, future in in_flight:
            try:
                future.result(self.ack_timeout_s + 1)
            except Rejected as error:
                report.skipped[f"refused by Kafka ({error.code})"] += 1
            except TimeoutError as error:
                raise BrokerUnavailable("Kafka did not acknowledge a replayed record in time") from error
            else:
                report.sent[str(letter.position)] = letter.origin.topic

    def _publish_result(self, result: CommandResult, command: Record) -> None:
        # The last step: once the result is in the log, the command is never executed again.
        output = cloudevent(
            OPERATOR_RESULTS,
            result.command_id,
            result,
            source=SERVICE,
            ce_id=f"{result.command_id}/{SERVICE}",
            at=result.finished_at,
            traceparent=traceparent_of(command.headers),
            partition=0,
        )
        try:
            self.publisher.publish(output).result(self.ack_timeout_s + 1)
        except TimeoutError as error:
            raise BrokerUnavailable("Kafka did not acknowledge the result of a replay in time") from error
        self._note(result)
        log.info(
            "replay_executed", command_id=result.command_id, status=result.status, message=result.message
        )


class DeadLetterReplayThread:
    """Thread of a `DeadLetterReplayer`. The HTTP API does not depend on it: while it cannot work, commands wait."""

    def __init__(self, replayer: DeadLetterReplayer) -> None:
        self._replayer = replayer
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=replayer.run, args=(self._stopping,), name="dead-letter-replay", daemon=True
        )

    def start(self) -> None:
        """Start executing commands."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the command in progress, within `STOP_S` seconds, and hand over to another process."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_S)
        self._replayer.publisher.close()


def _ranges_of(positions: Sequence[DeadLetterPosition]) -> Iterator[tuple[int, int, int]]:
    """Yield few ranges (partition, start, stop) that contain all `positions`, which must be sorted."""
    start = last = None
    for position in positions:
        if start is not None and last is not None:
            if position.partition == start.partition and position.offset - last.offset <= MAX_GAP:
                last = position
                continue
            yield start.partition, start.offset, last.offset + 1
        start = last = position
    if start is not None and last is not None:
        yield start.partition, start.offset, last.offset + 1


def _log_unreadable(record: Record, error: Rejected) -> None:
    log.warning(
        "unreadable_record",
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        error=str(error),
    )
