"""The inputs of one partition as one sequence, ordered by append time. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from shared.records import Record

RECORD_OVERHEAD = 1024
"""What a buffered record is taken to weigh in bytes beside its value: key, headers, objects around them."""


def memory_bytes(record: Record) -> int:
    """Bytes of memory that a buffered record counts for."""
    return RECORD_OVERHEAD + (len(record.value) if record.value else 0)


class MergeBuffer:
    """Buffers what was read and gives it out by (append time, order of inputs, offset).

    An input that is empty here but not at its end in the log holds the others back: what it has yet to bring
    may be older. An input at its end holds nobody back: what arrives there later may be slightly older than
    what was given out. Among inputs with a backlog, however far apart, the order is exact.
    """

    def __init__(self, topics: Sequence[str]) -> None:
        self.topics = tuple(topics)
        self._order = {topic: order for order, topic in enumerate(self.topics)}
        self._queues: list[deque[Record]] = [deque() for _ in self.topics]
        self._weights = [0] * len(self.topics)
        self._at_end = [False] * len(self.topics)
        self._next = [0] * len(self.topics)

    def add(self, record: Record) -> None:
        """The next record of its topic. An offset that was added before is left out."""
        order = self._order[record.topic]
        if record.offset < self._next[order]:
            return
        self._next[order] = record.offset + 1
        self._queues[order].append(record)
        self._weights[order] += RECORD_OVERHEAD + (len(record.value) if record.value else 0)
        self._at_end[order] = False

    def mark_end(self, topic: str) -> None:
        """All that the log holds of `topic` has been added."""
        self._at_end[self._order[topic]] = True

    def take(self, limit: int, max_bytes: int) -> list[Record]:
        """Up to `limit` records whose turn it is; at least one if any is, however heavy."""
        taken: list[Record] = []
        weight_left = max_bytes
        while limit > len(taken) and weight_left > 0:
            run = self._next_run()
            if run is None:
                break
            order, until = run
            queue = self._queues[order]
            before = weight_left
            while queue and limit > len(taken) and weight_left > 0 and queue[0].timestamp < until:
                record = queue.popleft()
                taken.append(record)
                weight_left -= RECORD_OVERHEAD + (len(record.value) if record.value else 0)
            self._weights[order] -= before - weight_left
        return taken

    def put_back(self, records: Iterable[Record]) -> None:
        """Undoes a `take`: these, in the order given out, come first again."""
        for record in reversed(list(records)):
            order = self._order[record.topic]
            self._queues[order].appendleft(record)
            self._weights[order] += memory_bytes(record)

    def bytes_of(self, topic: str) -> int:
        """How heavy the buffer of one input is, in bytes."""
        return self._weights[self._order[topic]]

    def count(self) -> int:
        """How many records wait here."""
        return sum(map(len, self._queues))

    def is_drained(self, topic: str) -> bool:
        """Whether `topic` is at its end in the log and nothing of it waits here."""
        order = self._order[topic]
        return self._at_end[order] and not self._queues[order]

    def is_idle(self) -> bool:
        """Whether all inputs are at their end and nothing waits."""
        return all(self._at_end) and not any(self._queues)

    def _next_run(self) -> tuple[int, float] | None:
        """(the input whose turn it is, the append time before which it stays its turn), None while held back.

        Runs, not single records: most neighbours come from one input. Inputs named earlier win ties, so the
        rival's own time still belongs to an input named before it.
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
