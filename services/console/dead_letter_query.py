"""Which dead letters a page shows, newest first. Pure but for the `LogRanges` that it is given.

`dead.letters` has several partitions, which are read from their ends backwards, a block at a time, and merged by time.
A page ends when it is full, or when so much was looked at; the cursor says where the next one goes on, so that no
request is long, however far back the ones that are wanted lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shared.dead_letter_replay import DeadLetter, DeadLetterPosition, parse_dead_letter
from shared.dead_letters import record_size
from shared.errors import Malformed
from shared.ports import LogRanges
from shared.records import Record
from shared.topics import DEAD_LETTERS

MAX_PAGE = 200
SCAN = 3_000
"""Offsets that one page looks at, about."""
BLOCK = 100


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """What a list is of; None = whatever it is. Times: when it became a dead letter, in ms; `until` is not in it."""

    error_class: str | None = None
    topic: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    replayed: bool | None = None

    def takes(self, entry: DeadLetterEntry, replayed_by: Mapping[str, str]) -> bool:
        letter = entry.letter
        return (
            self.error_class in (None, letter.origin.error_class)
            and self.topic in (None, letter.origin.topic)
            and (self.since_ms is None or letter.appended_ms >= self.since_ms)
            and (self.until_ms is None or letter.appended_ms < self.until_ms)
            and self.replayed in (None, str(letter.position) in replayed_by)
        )


@dataclass(frozen=True, slots=True)
class DeadLetterEntry:
    """One dead letter in a list: without its content, whose size is `size`."""

    letter: DeadLetter
    size: int


@dataclass(frozen=True, slots=True)
class DeadLetterPage:
    entries: tuple[DeadLetterEntry, ...]
    next: str | None
    """Where the next page begins; None where nothing is left."""


def list_page(
    ranges: LogRanges,
    wanted: DeadLetterFilter,
    replayed_by: Mapping[str, str],
    *,
    cursor: str | None,
    limit: int,
) -> DeadLetterPage:
    """At most `limit` of those wanted; fewer, even none, does not mean that there are no more: `next` does.

    Raises `Malformed` for a cursor that is none, `BrokerUnavailable`.
    """
    backwards = _opened(ranges, wanted, cursor)
    entries: list[DeadLetterEntry] = []
    while len(entries) < limit:
        entry = backwards.next()
        if entry is None:
            break
        if wanted.takes(entry, replayed_by):
            entries.append(entry)
    return DeadLetterPage(tuple(entries), backwards.cursor())


def find_dead_letter(ranges: LogRanges, place: DeadLetterPosition) -> DeadLetter | None:
    """The dead letter that lies there."""
    if place.partition not in ranges.bounds(DEAD_LETTERS.name):
        return None
    span = {place.partition: (place.offset, place.offset + 1)}
    return next((parse_dead_letter(record) for record in ranges.read(DEAD_LETTERS.name, span)), None)


@dataclass
class Backwards:
    """`lows` and `highs`: of each partition, the first offset that is wanted and the end of what is not yet given."""

    ranges: LogRanges
    lows: dict[int, int]
    highs: dict[int, int]
    left: int
    """Offsets that may still be looked at."""
    held: dict[int, list[DeadLetterEntry]] = field(default_factory=dict)
    read_to: dict[int, int] = field(default_factory=dict)

    def next(self) -> DeadLetterEntry | None:
        """The newest that was not given; None at the end, or after about `left` offsets."""
        while missing := [p for p in self.highs if not self.held.get(p) and self._unread(p) > self.lows[p]]:
            if self.left <= 0:
                return None
            self._read(missing)
        newest = max(
            (entries[-1] for entries in self.held.values() if entries),
            key=lambda entry: (entry.letter.appended_ms, entry.letter.position),
            default=None,
        )
        if newest is not None:
            place = newest.letter.position
            self.held[place.partition].pop()
            self.highs[place.partition] = place.offset
        return newest

    def cursor(self) -> str | None:
        """Of each partition that is not at its beginning, where the next page goes on."""
        ends = {p: high if self.held.get(p) else self._unread(p) for p, high in self.highs.items()}
        left = [str(DeadLetterPosition(p, end)) for p, end in sorted(ends.items()) if end > self.lows[p]]
        return ".".join(left) or None

    def _unread(self, partition: int) -> int:
        return self.read_to.get(partition, self.highs[partition])

    def _read(self, partitions: list[int]) -> None:
        spans = {}
        for partition in partitions:
            end = self._unread(partition)
            start = max(self.lows[partition], end - BLOCK)
            spans[partition], self.held[partition], self.read_to[partition] = (start, end), [], start
            self.left -= end - start
        for record in self.ranges.read(DEAD_LETTERS.name, spans):
            size = record_size(record.key, record.value, ())
            # The content is let go at once: a page of entries is small, whatever died.
            where = (record.topic, record.partition, record.offset, record.timestamp)
            light = Record(*where, None, None, record.headers)
            self.held[record.partition].append(DeadLetterEntry(parse_dead_letter(light), size))


def _opened(ranges: LogRanges, wanted: DeadLetterFilter, cursor: str | None) -> Backwards:
    bounds = ranges.bounds(DEAD_LETTERS.name)
    lows = {partition: low for partition, (low, _) in bounds.items()}
    if wanted.since_ms is not None:
        # All before the first one as new is older, also where clocks went back in between.
        for partition, first in ranges.since(DEAD_LETTERS.name, wanted.since_ms).items():
            lows[partition] = max(lows.get(partition, 0), first)
    if cursor is None:
        return Backwards(ranges, lows, {partition: high for partition, (_, high) in bounds.items()}, SCAN)
    highs = {}
    for part in cursor.split("."):
        place = DeadLetterPosition.parse(part)
        if place.partition not in bounds:
            raise Malformed(f"the cursor names a partition {place.partition} that is not there: begin anew")
        highs[place.partition] = min(place.offset, bounds[place.partition][1])
    return Backwards(ranges, lows, highs, SCAN)
