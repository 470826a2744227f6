"""A dead letter read again, and the record that goes back."""

from __future__ import annotations

import pytest

from shared.dead_letter_replay import (
    DeadLetter,
    DeadLetterPosition,
    make_replay_record,
    parse_dead_letter,
    parse_replay_mark,
)
from shared.dead_letters import make_dead_letter
from shared.errors import Malformed, Oversized
from shared.records import Record

DIED = Record(
    "feedback.events",
    3,
    41,
    1_700_000_000_000,
    b"r-1",
    b"\xffbytes",
    (("ce_id", b"e"), ("dl_topic", b"mine")),
)


def buried(record: Record, offset: int = 7, max_bytes: int = 1_000_000) -> DeadLetter:
    """As it is read from the dead letters."""
    out = make_dead_letter("dead.letters", record, Oversized("too much"), "processor", max_bytes)
    return parse_dead_letter(Record(out.topic, 5, offset, 1_700_000_000_500, out.key, out.value, out.headers))


def again(letter: DeadLetter, command_id: str = "c-1", offset: int = 90) -> Record:
    """As it is read from its topic once it went back."""
    out = make_replay_record(letter, command_id)
    return Record(out.topic, out.partition or 0, offset, 1_700_000_001_000, out.key, out.value, out.headers)


def test_a_letter_says_where_it_came_from_and_why() -> None:
    letter = buried(DIED)
    assert (str(letter.position), letter.appended_ms) == ("5-7", 1_700_000_000_500)
    assert (letter.origin.topic, letter.origin_partition, letter.origin_offset, letter.origin_timestamp_ms) == (
        "feedback.events",
        3,
        41,
        1_700_000_000_000,
    )
    assert (letter.origin.error_class, letter.origin.message, letter.origin.service) == (
        "oversized",
        "too much",
        "processor",
    )


def test_what_goes_back_is_the_record_that_died_and_is_marked() -> None:
    out = make_replay_record(buried(DIED), "c-1")
    assert (out.topic, out.partition, out.key, out.value) == (DIED.topic, 3, DIED.key, DIED.value)
    # A header of the record's own is its own, whatever its name.
    assert out.headers == (
        *DIED.headers,
        ("replayed_from", b"5-7"),
        ("replay_id", b"c-1"),
        ("replay_count", b"1"),
    )
    assert parse_replay_mark(out.headers) == ("c-1", "5-7")
    assert parse_replay_mark(DIED.headers) is None


def test_a_record_that_fails_again_names_the_letter_before_and_how_often_it_went_back() -> None:
    second = buried(again(buried(DIED)), offset=8)
    assert (second.replayed_from, second.replay_id, second.replay_count) == ("5-7", "c-1", 1)
    third = buried(again(second, "c-2"), offset=9)
    assert (third.replayed_from, third.replay_id, third.replay_count) == ("5-8", "c-2", 2)
    assert third.headers == DIED.headers


def test_a_record_that_was_too_large_to_keep_says_how_large() -> None:
    letter = buried(DIED, max_bytes=0)
    assert (letter.value, letter.omitted_bytes, letter.origin.topic) == (None, 27, "feedback.events")


def test_a_foreign_record_among_the_dead_letters_is_read_all_the_same() -> None:
    letter = parse_dead_letter(Record("dead.letters", 0, 1, 5, None, b"x", (("dl_offset", b"many"),)))
    assert (letter.origin.topic, letter.origin_partition, letter.origin_offset) == ("", None, None)


@pytest.mark.parametrize("text", ["", "3", "3-", "-1", "3-4-5", "a-1", "3-1\n", "٣-1", "9999999-1"])
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(Malformed, match="position"):
        DeadLetterPosition.parse(text)


def test_a_position_is_read_as_it_is_written() -> None:
    assert str(DeadLetterPosition.parse("3-1042")) == "3-1042"
