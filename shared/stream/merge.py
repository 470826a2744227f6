"""Merge of a partition's inputs into one sequence, ordered by append time. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from shared.records import Record

RECORD_OVERHEAD = 1024
"""Memory counted for a record in addition to its value, in bytes: its key, headers, and Python objects."""


def memory_bytes(record: Record) -> int:
    """Return the memory that a buffered record counts for, in bytes."""
    return RECORD_OVERHEAD + (len(record.value) if record.value else 0)


class MergeBuffer:
    """Buffer of the records read from a partition's inputs, taken in order of (append time, input, offset).

    Inputs with a backlog are merged exactly, however far apart they are. While an input has no record here and is not
    at its end in the log, no record is given out, because the missing one may be older. An input at its end does not
    block the others, so a record that arrives there later may be slightly older than those already taken.
    """

    def __init__(self, topics: Sequence[str]) -> None:
        self.topics = tuple(topics)
        self._order = {topic: order for order, topic in enumerate(self.topics)}
        self._queues: list[deque[Record]] = [deque() for _ in self.topics]
        self._bytes = [0] * len(self.topics)
        self._at_end = [False] * len(self.topics)
        self._next = [0] * len(self.topics)

    def add(self, record: Record) -> None:
        """Append the next record of its topic. An offset that was added before is ignored."""
        order = self._order[record.topic]
        if record.offset < self._next[order]:
            return
        self._next[order] = record.offset + 1
        self._queues[order].append(record)
        self._bytes[order] += RECORD_OVERHEAD + (len(record.value) if record.value else 0)
        self._at_end[order] = False

    def mark_end(self, topic: str) -> None:
        """Note that every record of `topic` in the log has been added."""
        self._at_end[self._order[topic]] = True

    def take(self, limit: int, max_bytes: int) -> list[Record]:
        """Remove and return the next records in order: at most `limit`, and about `max_bytes` of memory.

        Returns at least one record if any is ready, however large it is.
        """
        taken: list[Record] = []
        bytes_left = max_bytes
        while limit > len(taken) and bytes_left > 0:
            run = self._next_run()
            if run is None:
                break
            order, until = run
            queue = self._queues[order]
            before = bytes_left
            while queue and limit > len(taken) and bytes_left > 0 and queue[0].timestamp < until:
                record = queue.popleft()
                taken.append(record)
                bytes_left -= RECORD_OVERHEAD + (len(record.value) if record.value else 0)
            self._bytes[order] -= before - bytes_left
        return taken

    def put_back(self, records: Iterable[Record]) -> None:
        """Undo a `take`: return these records, in the order in which they were taken, to the front."""
        for record in reversed(list(records)):
            order = self._order[record.topic]
            self._queues[order].appendleft(record)
            self._bytes[order] += memory_bytes(record)

    def bytes_of(self, topic: str) -> int:
        """Return the memory of the buffered records of one input, in bytes."""
        return self._bytes[self._order[topic]]

    def oldest_ms(self) -> int | None:
        """Return the append time of the oldest buffered record, in ms since the epoch, or None if there is none."""
        return min((queue[0].timestamp for queue in self._queues if queue), default=None)

    def count(self) -> int:
        """Return the number of buffered records."""
        return sum(map(len, self._queues))

    def is_drained(self, topic: str) -> bool:
        """Return whether `topic` is at its end in the log and has no buffered record."""
        order = self._order[topic]
        return self._at_end[order] and not self._queues[order]

    def is_idle(self) -> bool:
        """Return whether every input is at its end and nothing is buffered."""
        return all(self._at_end) and not any(self._queues)

    def _next_run(self) -> tuple[int, float] | None:
        """Return the next input to take from and the append time up to which it stays next, or None if blocked.

        Working with runs is cheaper than comparing single records, because most neighbours come from one input. At the
        same append time the input named first wins, so such an input may also take the rival's own timestamp.
        """
        first = rival = -1
        first_time = rival_time = float("inf")
        for order, queue in enumerate(self._queues):
            if queue:
                time = queue[0].timestamp
                if time < first_time:
                    rival, rival_time = first, first_time
                    first, first_time = order, time
                elif time < rival_time:
                    rival, rival_time = order, time
            elif not self._at_end[order]:
                return None
        if first < 0:
            return None
        return first, rival_time + 1 if first < rival else rival_time
