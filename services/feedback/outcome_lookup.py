"""Look up the outcome of one event in Kafka: slower than Redis, and always right.

All records of an event are in one partition per topic, the one of its response_id: `feedback.outcomes` is partitioned
like the input, and a dead letter keeps its key.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog

from services.feedback.core.receipts import NoOutcome
from shared.dead_letters import parse_origin
from shared.errors import BrokerUnavailable, Conflict, Overloaded, Rejected
from shared.events import FEEDBACK, Feedback, Outcome, OutcomeKind, from_ms, parse_union
from shared.partitioning import partition_for
from shared.ports import LogReader
from shared.records import Record
from shared.topics import DEAD_LETTERS, FEEDBACK_EVENTS, FEEDBACK_OUTCOMES

OpenPartition = Callable[[str, int], LogReader]
"""(topic, partition) -> a reader of that partition from its beginning."""
POLL_S: Final = 0.2
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _DeadArrival:
    """An arrival of an event that became a dead letter."""

    event: Feedback
    message: str
    at: datetime


class OutcomeLookup:
    """Finds outcomes in Kafka. At most `max_parallel` lookups run at once, each for at most `timeout_s` seconds."""

    def __init__(
        self, open_partition: OpenPartition, *, partitions: int, timeout_s: float, max_parallel: int
    ) -> None:
        self._open_partition = open_partition
        self._partitions = partitions
        self._timeout_s = timeout_s
        self._slots = threading.BoundedSemaphore(max_parallel)

    def find(self, response_id: str, event_id: str) -> Outcome | NoOutcome:
        """Return the event's outcome, or why there is none. Blocks.

        Raises:
            Overloaded: if no lookup finishes in time to make way for this one.
            BrokerUnavailable: if Kafka could not be read in time.

        """
        deadline = time.monotonic() + self._timeout_s
        if not self._slots.acquire(timeout=self._timeout_s):
            raise Overloaded("too many receipts are being looked up in Kafka: try again in a few seconds")
        try:
            return self._find(response_id, event_id, deadline)
        finally:
            self._slots.release()

    def _find(self, response_id: str, event_id: str, deadline: float) -> Outcome | NoOutcome:
        outcomes = self._outcomes(response_id, event_id, deadline)
        first = next((o for o in outcomes if not o.is_repetition), None)
        if first is not None:
            return first
        arrivals = self._arrivals(response_id, event_id, deadline)
        if not arrivals:
            return NoOutcome.NOT_FOUND
        if len(outcomes) >= len(arrivals):
            # Every arrival was a duplicate: the same feedback came before under another event_id.
            return outcomes[0]
        dead = self._dead_outcome(response_id, arrivals, len(outcomes), deadline)
        return dead or NoOutcome.PENDING

    def _outcomes(self, response_id: str, event_id: str, deadline: float) -> list[Outcome]:
        outcomes = map(_parse_outcome, self._records(FEEDBACK_OUTCOMES.name, response_id, deadline))
        return [outcome for outcome in outcomes if outcome is not None and outcome.event_id == event_id]

    def _arrivals(self, response_id: str, event_id: str, deadline: float) -> list[Feedback]:
        events = map(_parse_event, self._records(FEEDBACK_EVENTS.name, response_id, deadline))
        return [event for event in events if event is not None and event.event_id == event_id]

    def _dead_outcome(
        self, response_id: str, arrivals: Sequence[Feedback], duplicates: int, deadline: float
    ) -> Outcome | None:
        """Return the outcome `dead` if every arrival is dead or a duplicate, else None.

        A replayed dead letter is one more arrival, so the event is pending again until that arrival has an outcome.
        """
        first = arrivals[0]
        same_content = sum(event.content_digest() == first.content_digest() for event in arrivals)
        dead = self._dead_arrivals(response_id, first, deadline)
        if not dead or len(dead) < same_content - duplicates:
            return None
        newest = dead[-1]
        return Outcome(
            line=newest.event.line,
            response_id=response_id,
            event_id=newest.event.event_id,
            outcome=OutcomeKind.DEAD,
            detail=newest.message[:1024] or None,
            decided_at=newest.at,
        )

    def _dead_arrivals(self, response_id: str, first: Feedback, deadline: float) -> list[_DeadArrival]:
        """Return the dead letters of the event as it first arrived, oldest first.

        A conflict is not among them: it is about other content that was sent under the same identity.
        """
        dead = []
        for record in self._records(DEAD_LETTERS.name, response_id, deadline):
            origin, event = parse_origin(record), _parse_event(record)
            if origin.topic != FEEDBACK_EVENTS.name or origin.error_class == Conflict.code or event is None:
                continue
            if event.event_id == first.event_id and event.content_digest() == first.content_digest():
                dead.append(_DeadArrival(event, origin.message, from_ms(record.timestamp)))
        return dead

    def _records(self, topic: str, response_id: str, deadline: float) -> Iterator[Record]:
        key = response_id.encode()
        reader = self._open_partition(topic, partition_for(key, self._partitions))
        try:
            while not reader.at_end():
                if time.monotonic() > deadline:
                    log.warning("lookup_timed_out", topic=topic, timeout_s=self._timeout_s)
                    raise BrokerUnavailable(
                        f"{topic} could not be searched within {self._timeout_s:g} s: try again later, or raise "
                        "LOOPWRIGHT_FEEDBACK_SCAN_TIMEOUT_S"
                    )
                yield from (record for record in reader.poll(POLL_S) if record.key == key)
        finally:
            reader.close()


def _parse_outcome(record: Record) -> Outcome | None:
    try:
        return Outcome.from_json(record.value)
    except Rejected:
        return None


def _parse_event(record: Record) -> Feedback | None:
    try:
        return parse_union(FEEDBACK, record.value)
    except Rejected:
        return None
