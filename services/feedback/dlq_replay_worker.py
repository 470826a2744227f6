"""Carries out `replay`: dead letters go back to the topics that this service writes, each once.

Why it is done here and how it is done once: `docs/decisions/dead-letters.md`. In short: one process has the duty; what
was answered is never begun again; and before anything is sent, the log is asked what an interrupted try of the same
command has sent already.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import structlog

from services.feedback.command_consumer import CommandConsumer
from services.feedback.core.dlq_replay_rules import (
    AGE_MS,
    LATE,
    NO_PARTITION,
    NOT_THERE,
    ReplayReport,
    command_result,
    parse_positions,
    skip_reason,
)
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

SERVICE = "feedback"
POLL_S = 0.5
STOP_S = 20.0
AT_ONCE = 20
"""Dead letters in memory at a time: each has at most a megabyte."""
NEIGHBOURS = 200
"""Dead letters so many offsets apart are read in one go."""
SKEW_MS = 60_000
"""How much brokers' clocks may differ: what a command has sent is looked for from so long before it was given."""
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ReplayTarget:
    """A topic that a command writes. `sent`: the dead letters that an interrupted try of it has sent there."""

    partitions: frozenset[int]
    sent: frozenset[str]


@dataclass
class DeadLetterReplayer:
    """`open_duty` and `open_results` (a reader of `operator.results` from its beginning) connect when they are called.

    `ack_s` is the time within which `publisher` knows whether a record arrived.
    """

    open_duty: Callable[[], CommandConsumer]
    open_results: Callable[[], LogReader]
    ranges: LogRanges
    publisher: Publisher
    clock: Clock
    ack_s: float
    answered: set[str] = field(default_factory=set)
    replayed: set[str] = field(default_factory=set)
    """Places of dead letters that went back, by whatever command."""

    def run(self, stopping: threading.Event) -> None:
        """Until `stopping`. What fails is begun anew, after so long that nothing sent before is still on its way."""
        while not stopping.is_set():
            try:
                self._serve(stopping)
            except LoopwrightError as error:
                log.warning("replays_wait", code=error.code, error=str(error))
                stopping.wait(self.ack_s + 1)

    def _serve(self, stopping: threading.Event) -> None:
        duty = self.open_duty()
        try:
            while not stopping.is_set():
                records = duty.poll(POLL_S)
                if duty.took_over():
                    self._learn()
                for record in records:
                    self.take(record)
                    duty.keep(record)
        finally:
            duty.close()

    def _learn(self) -> None:
        """What was answered and replayed by others, or before."""
        reader = self.open_results()
        try:
            while not reader.at_end():
                for record in reader.poll(POLL_S):
                    self._note(record)
        finally:
            reader.close()

    def _note(self, record: Record) -> None:
        try:
            known = CommandResult.from_json(record.value)
        except Rejected as error:
            log.warning("unreadable", topic=record.topic, offset=record.offset, error=str(error))
            return
        self.answered.add(known.command_id)
        self.replayed.update(known.replayed.positions if known.replayed else ())

    # --- one command ---

    def take(self, record: Record) -> None:
        """Carries out a replay without an answer, passes over all else. Raises `Retryable`: it is to come again."""
        try:
            command = parse_union(COMMAND, record.value)
        except Rejected:  # its readers all say so; one dead letter of it is enough
            log.warning("unreadable", topic=record.topic, offset=record.offset)
            return
        if not isinstance(command, Replay) or EXECUTORS.get(command.kind) != SERVICE:
            return
        if command.command_id in self.answered:
            return
        now_ms = self.clock.now_ms()
        account = self._replay(command, record, late=now_ms - record.timestamp > AGE_MS)
        self._answer(command_result(command, account, SERVICE, from_ms(now_ms)), record)

    def _replay(self, command: Replay, record: Record, *, late: bool) -> ReplayReport:
        """Sends what can be sent; where it is `late`, only accounts for what an interrupted try has sent."""
        account = ReplayReport()
        targets: dict[str, ReplayTarget] = {}
        places = parse_positions(command.positions, account)
        for start in range(0, len(places), AT_ONCE):
            some = places[start : start + AT_ONCE]
            found = self._letters(some)
            waiting: list[tuple[DeadLetter, Future[Acked]]] = []
            for place in some:
                letter = found.get(place)
                why = skip_reason(letter, SERVICE, self.replayed)
                if letter is None or why is not None:
                    account.left[why or NOT_THERE] += 1
                    continue
                topic = letter.origin.topic
                if topic not in targets:
                    targets[topic] = self._target(command, topic, record.timestamp)
                if letter.origin_partition not in targets[topic].partitions:
                    account.left[NO_PARTITION] += 1
                elif str(place) in targets[topic].sent:
                    account.sent[str(place)] = topic
                elif late:
                    account.left[LATE] += 1
                else:
                    waiting.append(
                        (letter, self.publisher.publish(make_replay_record(letter, command.command_id)))
                    )
            self._settle(waiting, account)
        return account

    def _letters(self, places: Sequence[DeadLetterPosition]) -> dict[DeadLetterPosition, DeadLetter]:
        found = {}
        wanted = set(places)
        for partition, start, stop in _neighbours(places):
            for record in self.ranges.read(DEAD_LETTERS.name, {partition: (start, stop)}):
                if DeadLetterPosition(record.partition, record.offset) in wanted:
                    letter = parse_dead_letter(record)
                    found[letter.position] = letter
        return found

    def _target(self, command: Replay, topic: str, given_ms: int) -> ReplayTarget:
        bounds = self.ranges.bounds(topic)
        since = self.ranges.since(topic, given_ms - SKEW_MS)
        ranges = {partition: (since[partition], high) for partition, (_, high) in bounds.items()}
        marks = (parse_replay_mark(record.headers) for record in self.ranges.read(topic, ranges))
        sent = {mark[1] for mark in marks if mark is not None and mark[0] == command.command_id}
        return ReplayTarget(frozenset(bounds), frozenset(sent))

    def _settle(self, waiting: Sequence[tuple[DeadLetter, Future[Acked]]], account: ReplayReport) -> None:
        """Waits for all of them. Raises `BrokerUnavailable` where it is not known whether one arrived."""
        for letter, future in waiting:
            try:
                future.result(self.ack_s + 1)
            except Rejected as error:
                account.left[f"refused by Kafka ({error.code})"] += 1
            except TimeoutError as error:
                raise BrokerUnavailable("Kafka has not acknowledged a replayed record in time") from error
            else:
                account.sent[str(letter.position)] = letter.origin.topic

    def _answer(self, found: CommandResult, command: Record) -> None:
        """Last of all: from here on it is never begun again."""
        output = cloudevent(
            OPERATOR_RESULTS,
            found.command_id,
            found,
            source=SERVICE,
            ce_id=f"{found.command_id}/{SERVICE}",
            at=found.finished_at,
            traceparent=traceparent_of(command.headers),
            partition=0,
        )
        try:
            self.publisher.publish(output).result(self.ack_s + 1)
        except TimeoutError as error:
            raise BrokerUnavailable("Kafka has not acknowledged the result of a replay in time") from error
        self.answered.add(found.command_id)
        self.replayed.update(found.replayed.positions if found.replayed else ())
        log.info("replay", command_id=found.command_id, status=found.status, message=found.message)


class DeadLetterReplayThread:
    """Runs a `Replayer` beside the door. The door serves without it: a replay then waits."""

    def __init__(self, replayer: DeadLetterReplayer) -> None:
        self._replayer = replayer
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=replayer.run, args=(self._stopping,), name="replays", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Lets what was sent settle and hands the duty on, within bounds."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_S)
        self._replayer.publisher.close()


def _neighbours(places: Sequence[DeadLetterPosition]) -> Iterator[tuple[int, int, int]]:
    """(partition, start, stop) of few ranges that hold all of `places`, which are in order."""
    start = last = None
    for place in places:
        if start is not None and last is not None:
            if place.partition == start.partition and place.offset - last.offset <= NEIGHBOURS:
                last = place
                continue
            yield start.partition, start.offset, last.offset + 1
        start = last = place
    if start is not None and last is not None:
        yield start.partition, start.offset, last.offset + 1
