"""Pages of dead letters: newest first over all partitions, filtered, bounded, and none twice."""

from __future__ import annotations

import random
from typing import Any

import pytest

from services.console import dead_letter_query
from services.console.dead_letter_query import DeadLetterFilter, DeadLetterPage, find_dead_letter, list_page
from shared.adapters.clock import ManualClock
from shared.adapters.in_memory import InMemoryLog, InMemoryLogRanges
from shared.dead_letter_replay import DeadLetterPosition
from shared.errors import Malformed
from shared.records import Output

P = 6
T0 = 1_700_000_000_000


class DeadLetterLog:
    """A log of dead letters, written one second apart."""

    def __init__(self) -> None:
        self.clock = ManualClock(T0)
        self.log = InMemoryLog(P, self.clock)
        self.ranges = InMemoryLogRanges(self.log)

    def write(self, partition: int, topic: str = "feedback.events", code: str = "oversized") -> str:
        """Write a dead letter and return its position."""
        headers = (("dl_topic", topic.encode()), ("dl_class", code.encode()), ("dl_message", b"why"))
        self.clock.advance(1.0)
        acked = self.log.append(Output("dead.letters", b"k", b"v" * 10, headers, partition))[0]
        return f"{acked.partition}-{acked.offset}"

    def page(self, cursor: str | None = None, limit: int = 50, **conditions: Any) -> DeadLetterPage:
        replayed_by = conditions.pop("replayed_by", {})
        return list_page(self.ranges, DeadLetterFilter(**conditions), replayed_by, cursor=cursor, limit=limit)

    def all(self, limit: int = 50, **conditions: Any) -> list[str]:
        """Return the positions on all pages."""
        positions, cursor = [], None
        while True:
            page = self.page(cursor, limit, **conditions)
            positions += positions_on(page)
            cursor = page.next
            if cursor is None:
                return positions


def positions_on(page: DeadLetterPage) -> list[str]:
    return [str(entry.letter.position) for entry in page.entries]


@pytest.mark.parametrize("limit", [1, 3, 7, 200])
@pytest.mark.parametrize("seed", range(5))
def test_all_pages_together_are_all_letters_newest_first(seed: int, limit: int) -> None:
    letters, rng = DeadLetterLog(), random.Random(seed)
    written = [letters.write(rng.choice([0, 0, 0, 1, 4])) for _ in range(40)]
    assert letters.all(limit) == written[::-1]


def test_blocks_leave_no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letter_query, "BLOCK", 3)
    letters = DeadLetterLog()
    written = [letters.write(n % 2) for n in range(25)]
    assert letters.all(4) == written[::-1]


def test_filters_by_class_topic_time_and_replay() -> None:
    letters = DeadLetterLog()
    first, second, third = (
        letters.write(0),
        letters.write(1, code="malformed"),
        letters.write(2, topic="chat.responses"),
    )
    assert letters.all(error_class="oversized") == [third, first]
    assert letters.all(topic="feedback.events") == [second, first]
    assert letters.all(since_ms=T0 + 2_000) == [third, second]
    assert letters.all(until_ms=T0 + 2_000) == [first]
    assert letters.all(since_ms=T0 + 2_000, until_ms=T0 + 3_000) == [second]
    assert letters.all(replayed=True, replayed_by={second: "c-1"}) == [second]
    assert letters.all(replayed=False, replayed_by={second: "c-1"}) == [third, first]


def test_letters_written_between_pages_do_not_appear() -> None:
    letters = DeadLetterLog()
    written = [letters.write(0) for _ in range(4)]
    first = letters.page(limit=2)
    letters.write(0)
    letters.write(3)
    assert positions_on(first) + positions_on(letters.page(first.next, limit=10)) == written[::-1]


def test_page_reads_a_bounded_number_of_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letter_query, "BLOCK", 5)
    monkeypatch.setattr(dead_letter_query, "MAX_SCAN", 20)
    letters = DeadLetterLog()
    rare = letters.write(2, code="rare")
    for n in range(300):
        letters.write(n % P)
    positions, cursor, pages = [], None, 0
    while True:
        page = letters.page(cursor, error_class="rare")
        positions += positions_on(page)
        pages += 1
        cursor = page.next
        if cursor is None:
            break
    assert positions == [rare]
    assert pages > 5
    assert positions_on(letters.page(error_class="rare")) == []


def test_list_ends_where_retention_removed_letters() -> None:
    letters = DeadLetterLog()
    written = [letters.write(1) for _ in range(5)]
    letters.log.trim("dead.letters", 1, 3)
    assert letters.all() == written[:2:-1]


def test_entry_has_the_size_of_its_content_but_not_the_content() -> None:
    letters = DeadLetterLog()
    letters.write(0)
    (entry,) = letters.page().entries
    assert (entry.letter.value, entry.letter.key, entry.size) == (None, None, 11)


@pytest.mark.parametrize("cursor", ["", "x", "0-1.", "17-3"])
def test_invalid_cursor_is_rejected(cursor: str) -> None:
    with pytest.raises(Malformed):
        DeadLetterLog().page(cursor)


def test_letter_is_found_by_position_with_its_content() -> None:
    letters = DeadLetterLog()
    letters.write(4)
    place = DeadLetterPosition.parse(letters.write(4, code="malformed"))
    letter = find_dead_letter(letters.ranges, place)
    assert letter is not None
    assert (letter.value, letter.origin.error_class) == (b"v" * 10, "malformed")
    assert find_dead_letter(letters.ranges, DeadLetterPosition(4, 2)) is None
    assert find_dead_letter(letters.ranges, DeadLetterPosition(77, 0)) is None
