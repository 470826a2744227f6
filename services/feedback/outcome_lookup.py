"""Looking one event up in the log itself: slower than Redis, and never wrong.

An event's records lie in one partition, that of its response_id: `feedback.outcomes` is written beside the input, and
a dead letter keeps its key.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog

from shared.dead_letters import parse_origin
from shared.errors import BrokerUnavailable, Conflict, Overloaded, Rejected
from shared.events import FEEDBACK, Feedback, Outcome, OutcomeKind, from_ms, parse_union
from shared.partitioning import partition_for
from shared.ports import LogReader
from shared.records import Record
from shared.topics import DEAD_LETTERS, FEEDBACK_EVENTS, FEEDBACK_OUTCOMES

OpenPartition = Callable[[str, int], LogReader]
"""(topic, partition) -> a reader of that partition from its beginning"""
POLL_S = 0.2
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One arrival of an event in the log."""

    event: Feedback
    at: datetime


class OutcomeLookup:
    """Finds outcomes in the log. Bounded: `slots` look-ups at once, each within `timeout_s`."""

    def __init__(
        self, open_partition: OpenPartition, *, partitions: int, timeout_s: float, slots: int
    ) -> None:
        self._open = open_partition
        self._partitions = partitions
        self._timeout_s = timeout_s
        self._slots = threading.BoundedSemaphore(slots)

    def find(self, response_id: str, event_id: str) -> Outcome | bool:
        """The outcome; True if the event is in the log without one; False if it is not in the log.

        Raises `Overloaded` or `BrokerUnavailable` where the bounds are reached first.
        """
        deadline = time.monotonic() + self._timeout_s
        if not self._slots.acquire(timeout=self._timeout_s):
            raise Overloaded("too many receipts are being looked up in the log: try again in some seconds")
        try:
            return self._find(response_id, event_id, deadline)
        finally:
            self._slots.release()

    def _find(self, response_id: str, event_id: str, deadline: float) -> Outcome | bool:
        outcomes = self._outcomes(response_id, event_id, deadline)
        first = next((o for o in outcomes if o.outcome != OutcomeKind.DUPLICATE), None)
        if first is not None:
            return first
        sent = self._sent(response_id, event_id, deadline)
        if not sent:
            return False
        if len(outcomes) >= len(sent):
            # Every arrival was a duplicate: what it says was said under another event_id before.
            return outcomes[0]
        return self._dead(response_id, sent, len(outcomes), deadline) or True

    def _outcomes(self, response_id: str, event_id: str, deadline: float) -> list[Outcome]:
        found = (
            _read_outcome(record) for record in self._records(FEEDBACK_OUTCOMES.name, response_id, deadline)
        )
        return [outcome for outcome in found if outcome is not None and outcome.event_id == event_id]

    def _sent(self, response_id: str, event_id: str, deadline: float) -> list[Arrival]:
        records = self._records(FEEDBACK_EVENTS.name, response_id, deadline)
        found = ((_read_event(record), record.timestamp) for record in records)
        return [
            Arrival(event, from_ms(at))
            for event, at in found
            if event is not None and event.event_id == event_id
        ]

    def _dead(
        self, response_id: str, sent: Sequence[Arrival], repeated: int, deadline: float
    ) -> Outcome | None:
        """The newest dead letter of the event as it came first, if every arrival of it died (or was one of the
        `repeated`): one that was replayed waits again. A conflict is about another event under the same identity."""
        first = sent[0].event
        arrivals = sum(each.event.content_digest() == first.content_digest() for each in sent)
        dead = []
        for record in self._records(DEAD_LETTERS.name, response_id, deadline):
            origin, event = parse_origin(record), _read_event(record)
            if origin.topic != FEEDBACK_EVENTS.name or origin.error_class == Conflict.code or event is None:
                continue
            if event.event_id == first.event_id and event.content_digest() == first.content_digest():
                dead.append((event, origin, record.timestamp))
        if not dead or len(dead) < arrivals - repeated:
            return None
        event, origin, at_ms = dead[-1]
        return Outcome(
            line=event.line,
            response_id=response_id,
            event_id=event.event_id,
            outcome=OutcomeKind.DEAD,
            detail=origin.message[:1024] or None,
            decided_at=from_ms(at_ms),
        )

    def _records(self, topic: str, response_id: str, deadline: float) -> Iterator[Record]:
        key = response_id.encode()
        reader = self._open(topic, partition_for(key, self._partitions))
        try:
            while not reader.at_end():
                if time.monotonic() > deadline:
                    log.warning("look_up_timed_out", topic=topic, seconds=self._timeout_s)
                    raise BrokerUnavailable(
                        f"the log could not be read within {self._timeout_s:g} s: try again later, or raise "
                        "LOOPWRIGHT_FEEDBACK_SCAN_TIMEOUT_S"
                    )
                yield from (record for record in reader.poll(POLL_S) if record.key == key)
        finally:
            reader.close()


def _read_outcome(record: Record) -> Outcome | None:
    try:
        return Outcome.from_json(record.value)
    except Rejected:
        return None


def _read_event(record: Record) -> Feedback | None:
    try:
        return parse_union(FEEDBACK, record.value)
    except Rejected:
        return None
