"""Look up the outcome of one event in the index of receipts, which a thread keeps up to date with the log."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import structlog

from services.feedback.core.langfuse_edits import ScoreEvent
from services.feedback.core.receipts import NoOutcome
from services.feedback.receipt_index import INDEXED_TOPICS, BuildProgress, ReceiptIndex
from shared.adapters.topic_follower import TopicFollower
from shared.errors import BrokerUnavailable, Overloaded
from shared.events import Outcome
from shared.partitioning import partition_for
from shared.ports import LogRanges, LogReader, Position
from shared.records import Record
from shared.stream.state_store import StoreFailed
from shared.telemetry import Readiness
from shared.topics import FEEDBACK_EVENTS

CHECK: Final = "receipts"
MAX_WAITING: Final = 8
"""Lookups of unknown events that may wait for the log at once. Each asks the broker once."""
WAIT_S: Final = 2.0
log = structlog.get_logger(__name__)


class ReceiptLookup:
    """Finds the outcome of an event, or whether it is pending or not in the log.

    Args:
        index: the index; this class opens and closes it.
        open_reader: opens a reader of topics at positions.
        ranges: reports what the log holds when the index is opened.
        end_of: returns the next offset to be written of a partition, or raises `Retryable`.
        partitions: P of the deployment.
        readiness: its check `receipts` is set here; until the index has caught up, it shows the progress.
        on_failure: called if the index cannot be kept up to date any more.

    """

    def __init__(
        self,
        index: ReceiptIndex,
        open_reader: Callable[[Sequence[str], dict[Position, int]], LogReader],
        ranges: LogRanges,
        end_of: Callable[[Position], int],
        *,
        partitions: int,
        readiness: Readiness,
        on_failure: Callable[[], None],
    ) -> None:
        self.index = index
        self._open_reader = open_reader
        self._ranges = ranges
        self._end_of = end_of
        self._partitions = partitions
        self._readiness = readiness
        self._reader: LogReader
        self._progress = BuildProgress({}, {})
        self._described = "the index of receipts is being opened"
        self._waiting = threading.BoundedSemaphore(MAX_WAITING)
        self.follower = TopicFollower(CHECK, self._open, self._apply, readiness, on_failure)

    def find(self, response_id: str, event_id: str) -> Outcome | NoOutcome:
        """Return the event's outcome, or why there is none. Blocks.

        An event that the index does not know may have been accepted a moment ago, here or by another replica. So the
        broker is asked for the end of its partition, and the index has to reach it before the answer is `NOT_FOUND`.

        Raises:
            BrokerUnavailable: if the index is not complete, or Kafka cannot be asked.
            Overloaded: if too many unknown events are looked up at once.

        """
        if not self.follower.caught_up:
            raise BrokerUnavailable(f"{self._described}. Try again later")
        found = self._find(response_id, event_id)
        if found is not NoOutcome.NOT_FOUND:
            return found
        self._wait_for_newest([partition_for(response_id.encode(), self._partitions)])
        return self._find(response_id, event_id)

    def score_events(self, score: str, response_id: str | None = None) -> list[ScoreEvent]:
        """Return the events of a Langfuse score, in log order per response, with the newest ones. Blocks.

        Args:
            score: the key of the score (`langfuse_edits.score_key`).
            response_id: the only response whose newest events matter, if it is known.

        Raises:
            Retryable: as for `find`.

        """
        if not self.follower.caught_up:
            raise BrokerUnavailable(f"{self._described}. Try again later")
        known = None if response_id is None else partition_for(response_id.encode(), self._partitions)
        self._wait_for_newest(range(self._partitions) if known is None else [known])
        try:
            return self.index.find_score(score)
        except StoreFailed as error:
            raise _unreadable() from error

    def stop(self) -> None:
        """Stop following the log and close the index."""
        self.follower.stop()
        self.index.close()

    def _wait_for_newest(self, partitions: Iterable[int]) -> None:
        """Wait until the index has what these partitions of `feedback.events` hold now."""
        if not self._waiting.acquire(blocking=False):
            raise Overloaded("too many unknown events are looked up at once: try again in a few seconds")
        try:
            for partition in partitions:
                position = (FEEDBACK_EVENTS.name, partition)
                if not self.index.wait_for(position, self._end_of(position), WAIT_S):
                    raise BrokerUnavailable(
                        f"the index of receipts has not read the newest events within {WAIT_S:g} s: try again later"
                    )
        finally:
            self._waiting.release()

    def _find(self, response_id: str, event_id: str) -> Outcome | NoOutcome:
        try:
            return self.index.find(response_id, event_id)
        except StoreFailed as error:
            raise _unreadable() from error

    def _open(self) -> LogReader:
        starts = self.index.open()
        bounds = {
            (topic, partition): range_
            for topic in INDEXED_TOPICS
            for partition, range_ in self._ranges.bounds(topic).items()
        }
        if any(start > bounds.get(position, (0, 0))[1] for position, start in starts.items()):
            log.warning("receipt_index_rebuilt", reason="the log ends before the positions of the index")
            self.index.clear()
            starts = {}
        # What retention has deleted since is past the index's retention too, so nothing is missing.
        starts = {position: max(start, bounds[position][0]) for position, start in starts.items()}
        lows = {position: low for position, (low, _) in bounds.items()}
        self._progress = BuildProgress(
            lows | starts, {position: end for position, (_, end) in bounds.items()}
        )
        self._reader = self._open_reader(INDEXED_TOPICS, starts)
        return self._reader

    def _apply(self, records: Sequence[Record]) -> None:
        reached = self._reader.positions()
        self.index.apply(records, reached)
        if not self.follower.caught_up:
            self._described = self._progress.describe(reached)
            self._readiness.set(CHECK, False, self._described)


def _unreadable() -> BrokerUnavailable:
    return BrokerUnavailable(
        "the index of receipts cannot be read and is opened again, or built again: try again in a minute"
    )
