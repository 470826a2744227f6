"""Tests of parsing a dead letter, and of the record that a replay sends."""

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

ORIGINAL = Record(
    "feedback.events",
    3,
    41,
    1_700_000_000_000,
    b"r-1",
    b"\xffbytes",
    (("ce_id", b"e"), ("dl_topic", b"mine")),
)


def dead_letter_of(record: Record, offset: int = 7, max_bytes: int = 1_000_000) -> DeadLetter:
    """Return the dead letter of `record`, as parsed from the dead-letter topic."""
    out = make_dead_letter("dead.letters", record, Oversized("too much"), "processor", max_bytes)
    return parse_dead_letter(Record(out.topic, 5, offset, 1_700_000_000_500, out.key, out.value, out.headers))


def replayed(dead_letter: DeadLetter, command_id: str = "c-1", offset: int = 90) -> Record:
    """Return the replayed record, as read from its original topic."""
    out = make_replay_record(dead_letter, command_id)
    return Record(out.topic, out.partition or 0, offset, 1_700_000_001_000, out.key, out.value, out.headers)


def test_dead_letter_names_its_origin_and_error() -> None:
    dead_letter = dead_letter_of(ORIGINAL)
    assert (str(dead_letter.position), dead_letter.appended_ms) == ("5-7", 1_700_000_000_500)
    assert (
        dead_letter.origin.topic,
        dead_letter.origin_partition,
        dead_letter.origin_offset,
        dead_letter.origin_timestamp_ms,
    ) == (
        "feedback.events",
        3,
        41,
        1_700_000_000_000,
    )
    assert (dead_letter.origin.error_class, dead_letter.origin.message, dead_letter.origin.service) == (
        "oversized",
        "too much",
        "processor",
    )


def test_replay_sends_the_original_record_with_a_mark() -> None:
    out = make_replay_record(dead_letter_of(ORIGINAL), "c-1")
    assert (out.topic, out.partition, out.key, out.value) == (ORIGINAL.topic, 3, ORIGINAL.key, ORIGINAL.value)
    # The record's own header is kept, although it has the name of an origin header.
    assert out.headers == (
        *ORIGINAL.headers,
        ("replayed_from", b"5-7"),
        ("replay_id", b"c-1"),
        ("replay_count", b"1"),
    )
    assert parse_replay_mark(out.headers) == ("c-1", "5-7")
    assert parse_replay_mark(ORIGINAL.headers) is None


def test_second_dead_letter_names_the_first_and_the_replay_count() -> None:
    second = dead_letter_of(replayed(dead_letter_of(ORIGINAL)), offset=8)
    assert (second.replayed_from, second.replay_id, second.replay_count) == ("5-7", "c-1", 1)
    third = dead_letter_of(replayed(second, "c-2"), offset=9)
    assert (third.replayed_from, third.replay_id, third.replay_count) == ("5-8", "c-2", 2)
    assert third.headers == ORIGINAL.headers


def test_omitted_record_states_its_size() -> None:
    dead_letter = dead_letter_of(ORIGINAL, max_bytes=0)
    assert (dead_letter.value, dead_letter.omitted_bytes, dead_letter.origin.topic) == (
        None,
        27,
        "feedback.events",
    )


def test_foreign_record_in_the_topic_is_parsed() -> None:
    dead_letter = parse_dead_letter(Record("dead.letters", 0, 1, 5, None, b"x", (("dl_offset", b"many"),)))
    assert (dead_letter.origin.topic, dead_letter.origin_partition, dead_letter.origin_offset) == (
        "",
        None,
        None,
    )


@pytest.mark.parametrize("text", ["", "3", "3-", "-1", "3-4-5", "a-1", "3-1\n", "٣-1", "9999999-1"])
def test_invalid_position_is_refused(text: str) -> None:
    with pytest.raises(Malformed, match="position"):
        DeadLetterPosition.parse(text)


def test_position_survives_parsing() -> None:
    assert str(DeadLetterPosition.parse("3-1042")) == "3-1042"
