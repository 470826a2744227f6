"""Which dead letters a page shows: newest first over all partitions, filtered, bounded, and none twice."""

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


class Yard:
    """A log with dead letters, a second apart."""

    def __init__(self) -> None:
        self.clock = ManualClock(T0)
        self.log = InMemoryLog(P, self.clock)
        self.ranges = InMemoryLogRanges(self.log)

    def bury(self, partition: int, topic: str = "feedback.events", code: str = "oversized") -> str:
        """Returns its position."""
        headers = (("dl_topic", topic.encode()), ("dl_class", code.encode()), ("dl_message", b"why"))
        self.clock.advance(1.0)
        acked = self.log.append(Output("dead.letters", b"k", b"v" * 10, headers, partition))[0]
        return f"{acked.partition}-{acked.offset}"

    def page(self, cursor: str | None = None, limit: int = 50, **wanted: Any) -> DeadLetterPage:
        replayed = wanted.pop("replayed_by", {})
        return list_page(self.ranges, DeadLetterFilter(**wanted), replayed, cursor=cursor, limit=limit)

    def all(self, limit: int = 50, **wanted: Any) -> list[str]:
        """Positions over all pages."""
        found, cursor = [], None
        while True:
            got = self.page(cursor, limit, **wanted)
            found += places(got)
            cursor = got.next
            if cursor is None:
                return found


def places(found: DeadLetterPage) -> list[str]:
    return [str(entry.letter.position) for entry in found.entries]


@pytest.mark.parametrize("limit", [1, 3, 7, 200])
@pytest.mark.parametrize("seed", range(5))
def test_all_pages_together_are_all_letters_newest_first(seed: int, limit: int) -> None:
    yard, chance = Yard(), random.Random(seed)
    buried = [yard.bury(chance.choice([0, 0, 0, 1, 4])) for _ in range(40)]
    assert yard.all(limit) == buried[::-1]


def test_blocks_follow_each_other_without_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letter_query, "BLOCK", 3)
    yard = Yard()
    buried = [yard.bury(n % 2) for n in range(25)]
    assert yard.all(4) == buried[::-1]


def test_filters_are_by_class_topic_time_and_whether_it_went_back() -> None:
    yard = Yard()
    first, second, third = yard.bury(0), yard.bury(1, code="malformed"), yard.bury(2, topic="chat.responses")
    assert yard.all(error_class="oversized") == [third, first]
    assert yard.all(topic="feedback.events") == [second, first]
    assert yard.all(since_ms=T0 + 2_000) == [third, second]
    assert yard.all(until_ms=T0 + 2_000) == [first]
    assert yard.all(since_ms=T0 + 2_000, until_ms=T0 + 3_000) == [second]
    assert yard.all(replayed=True, replayed_by={second: "c-1"}) == [second]
    assert yard.all(replayed=False, replayed_by={second: "c-1"}) == [third, first]


def test_letters_that_come_while_one_turns_pages_are_not_in_between() -> None:
    yard = Yard()
    buried = [yard.bury(0) for _ in range(4)]
    head = yard.page(limit=2)
    yard.bury(0)
    yard.bury(3)
    assert places(head) + places(yard.page(head.next, limit=10)) == buried[::-1]


def test_a_page_looks_at_a_bounded_number_and_says_where_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letter_query, "BLOCK", 5)
    monkeypatch.setattr(dead_letter_query, "SCAN", 20)
    yard = Yard()
    wanted = yard.bury(2, code="rare")
    for n in range(300):
        yard.bury(n % P)
    looked, cursor, pages = [], None, 0
    while True:
        got = yard.page(cursor, error_class="rare")
        looked += places(got)
        pages += 1
        cursor = got.next
        if cursor is None:
            break
    assert looked == [wanted]
    assert pages > 5
    assert places(yard.page(error_class="rare")) == []


def test_what_retention_removed_ends_the_list() -> None:
    yard = Yard()
    buried = [yard.bury(1) for _ in range(5)]
    yard.log.trim("dead.letters", 1, 3)
    assert yard.all() == buried[:2:-1]


def test_a_list_holds_no_content_but_its_size() -> None:
    yard = Yard()
    yard.bury(0)
    (entry,) = yard.page().entries
    assert (entry.letter.value, entry.letter.key, entry.size) == (None, None, 11)


@pytest.mark.parametrize("cursor", ["", "x", "0-1.", "17-3"])
def test_a_cursor_that_is_none_is_refused(cursor: str) -> None:
    with pytest.raises(Malformed):
        Yard().page(cursor)


def test_one_is_found_by_its_position_with_its_content() -> None:
    yard = Yard()
    yard.bury(4)
    place = DeadLetterPosition.parse(yard.bury(4, code="malformed"))
    letter = find_dead_letter(yard.ranges, place)
    assert letter is not None
    assert (letter.value, letter.origin.error_class) == (b"v" * 10, "malformed")
    assert find_dead_letter(yard.ranges, DeadLetterPosition(4, 2)) is None
    assert find_dead_letter(yard.ranges, DeadLetterPosition(77, 0)) is None
