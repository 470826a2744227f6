"""Query of dead letters: pages of them, newest first, and single ones.

The partitions of `dead.letters` are read backwards from their ends, one block at a time, and merged by time. A page
ends when it is full or when a bounded number of offsets was read; its cursor says where the next page continues. So no
request takes long, however far back the matching dead letters are.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from shared.dead_letter_replay import DeadLetter, DeadLetterPosition, parse_dead_letter
from shared.dead_letters import record_size
from shared.errors import Malformed, Overloaded
from shared.ports import LogRanges
from shared.records import Record
from shared.topics import DEAD_LETTERS

MAX_PAGE: Final = 200
MAX_SCAN = 3_000
"""Offsets that one page reads at most, to the nearest block."""
BLOCK = 100
"""Offsets of one partition that are read at a time."""
MAX_PARALLEL: Final = 2
WAIT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Conditions that a listed dead letter meets; None matches all.

    `since_ms` (inclusive) and `until_ms` (exclusive) bound the time at which the dead letter was written.
    """

    error_class: str | None = None
    topic: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    replayed: bool | None = None

    def matches(self, letter: DeadLetter, replayed_by: Mapping[str, str]) -> bool:
        """Return whether the dead letter meets all conditions."""
        return (
            self.error_class in (None, letter.origin.error_class)
            and self.topic in (None, letter.origin.topic)
            and (self.since_ms is None or letter.appended_ms >= self.since_ms)
            and (self.until_ms is None or letter.appended_ms < self.until_ms)
            and self.replayed in (None, str(letter.position) in replayed_by)
        )


@dataclass(frozen=True, slots=True)
class DeadLetterEntry:
    """A dead letter in a list, without its content."""

    letter: DeadLetter
    size: int
    """Size of the content, in bytes."""


@dataclass(frozen=True, slots=True)
class DeadLetterPage:
    """One page of a list."""

    entries: tuple[DeadLetterEntry, ...]
    next: str | None
    """Cursor of the next page, or None at the end of the list."""


class DeadLetterReader:
    """Reads dead letters for requests. Thread-safe; at most `MAX_PARALLEL` requests read at once.

    All methods raise `Overloaded` if a request would have to wait for too long, and `BrokerUnavailable`.
    """

    def __init__(self, ranges: LogRanges) -> None:
        self._ranges = ranges
        self._slots = threading.BoundedSemaphore(MAX_PARALLEL)

    def page(
        self,
        conditions: DeadLetterFilter,
        replayed_by: Mapping[str, str],
        *,
        cursor: str | None,
        limit: int,
    ) -> DeadLetterPage:
        """Return one page, as `list_page` does."""
        with self._slot():
            return list_page(self._ranges, conditions, replayed_by, cursor=cursor, limit=limit)

    def find(self, position: DeadLetterPosition) -> DeadLetter | None:
        """Return the dead letter at this position, with its content, or None."""
        with self._slot():
            return find_dead_letter(self._ranges, position)

    @contextmanager
    def _slot(self) -> Iterator[None]:
        if not self._slots.acquire(timeout=WAIT_S):
            raise Overloaded("too many requests are reading dead letters: try again in a few seconds")
        try:
            yield
        finally:
            self._slots.release()


def list_page(
    ranges: LogRanges,
    conditions: DeadLetterFilter,
    replayed_by: Mapping[str, str],
    *,
    cursor: str | None,
    limit: int,
) -> DeadLetterPage:
    """Return a page with at most `limit` matching dead letters, newest first.

    A page may have fewer, even none, although there are more: only `next` tells.

    Raises:
        Malformed: if the cursor is invalid.
        BrokerUnavailable: if Kafka does not answer in time.

    """
    scan = _start_scan(ranges, conditions, cursor)
    entries: list[DeadLetterEntry] = []
    while len(entries) < limit:
        entry = scan.next()
        if entry is None:
            break
        if conditions.matches(entry.letter, replayed_by):
            entries.append(entry)
    return DeadLetterPage(tuple(entries), scan.cursor())


def find_dead_letter(ranges: LogRanges, position: DeadLetterPosition) -> DeadLetter | None:
    """Return the dead letter at this position, with its content, or None."""
    if position.partition not in ranges.bounds(DEAD_LETTERS.name):
        return None
    span = {position.partition: (position.offset, position.offset + 1)}
    return next((parse_dead_letter(record) for record in ranges.read(DEAD_LETTERS.name, span)), None)


@dataclass
class _ReverseScan:
    """Merges the partitions, newest dead letter first."""

    ranges: LogRanges
    lows: dict[int, int]
    """Partition -> the lowest offset to read."""
    highs: dict[int, int]
    """Partition -> the offset below which no dead letter was returned yet."""
    remaining: int
    """Offsets that may still be read."""
    buffered: dict[int, list[DeadLetterEntry]] = field(default_factory=dict)
    """Partition -> dead letters that were read and not returned yet, oldest first."""
    read_down_to: dict[int, int] = field(default_factory=dict)

    def next(self) -> DeadLetterEntry | None:
        """Return the newest dead letter that was not returned yet; None at the end or if no more may be read."""
        while missing := [
            p for p in self.highs if not self.buffered.get(p) and self._unread_end(p) > self.lows[p]
        ]:
            if self.remaining <= 0:
                return None
            self._read(missing)
        newest = max(
            (entries[-1] for entries in self.buffered.values() if entries),
            key=lambda entry: (entry.letter.appended_ms, entry.letter.position),
            default=None,
        )
        if newest is not None:
            position = newest.letter.position
            self.buffered[position.partition].pop()
            self.highs[position.partition] = position.offset
        return newest

    def cursor(self) -> str | None:
        """Return where each unfinished partition continues, or None if all are finished."""
        ends = {p: high if self.buffered.get(p) else self._unread_end(p) for p, high in self.highs.items()}
        unfinished = [
            str(DeadLetterPosition(p, end)) for p, end in sorted(ends.items()) if end > self.lows[p]
        ]
        return ".".join(unfinished) or None

    def _unread_end(self, partition: int) -> int:
        return self.read_down_to.get(partition, self.highs[partition])

    def _read(self, partitions: list[int]) -> None:
        spans = {}
        for partition in partitions:
            end = self._unread_end(partition)
            start = max(self.lows[partition], end - BLOCK)
            spans[partition], self.buffered[partition], self.read_down_to[partition] = (start, end), [], start
            self.remaining -= end - start
        for record in self.ranges.read(DEAD_LETTERS.name, spans):
            size = record_size(record.key, record.value, ())
            # The content is dropped at once, so that a page of entries is small however large the records were.
            where = (record.topic, record.partition, record.offset, record.timestamp)
            letter = parse_dead_letter(Record(*where, None, None, record.headers))
            self.buffered[record.partition].append(DeadLetterEntry(letter, size))


def _start_scan(ranges: LogRanges, conditions: DeadLetterFilter, cursor: str | None) -> _ReverseScan:
    bounds = ranges.bounds(DEAD_LETTERS.name)
    lows = {partition: low for partition, (low, _) in bounds.items()}
    if conditions.since_ms is not None:
        # All records before the first one that is new enough are older, even if clocks went back in between.
        for partition, first in ranges.since(DEAD_LETTERS.name, conditions.since_ms).items():
            lows[partition] = max(lows.get(partition, 0), first)
    if cursor is None:
        highs = {partition: high for partition, (_, high) in bounds.items()}
        return _ReverseScan(ranges, lows, highs, MAX_SCAN)
    highs = {}
    for part in cursor.split("."):
        position = DeadLetterPosition.parse(part)
        if position.partition not in bounds:
            raise Malformed(
                f"the cursor names partition {position.partition} of {DEAD_LETTERS.name}, which does not exist: "
                "start again without a cursor"
            )
        highs[position.partition] = min(position.offset, bounds[position.partition][1])
    return _ReverseScan(ranges, lows, highs, MAX_SCAN)
