"""Tests of dead letters: their contents, and the limit that halts a process."""

from __future__ import annotations

import pytest

from shared.dead_letters import (
    DeadLetterLimit,
    DeadLetterRate,
    Skipped,
    is_unexpected,
    make_dead_letter,
    record_size,
)
from shared.errors import BrokerUnavailable, Conflict, Fatal, Malformed, Oversized, RefusedByBroker
from shared.records import Record

RECORD = Record("feedback.events", 3, 42, 1_700, b"key", b"bytes", (("ce_id", b"1"),))

# --- the limit ----------------------------------------------------------------------------------------------------


def test_single_errors_never_reach_the_limit() -> None:
    rate = DeadLetterRate(DeadLetterLimit())
    for _ in range(100):
        assert not rate.add_failure(ahead=500)
        rate.add_processed(1_000)


def test_first_records_of_a_deployment_may_not_all_fail() -> None:
    rate = DeadLetterRate(DeadLetterLimit(window=1_000, max_share=0.1, max_count=20))
    assert [rate.add_failure(ahead=n) for n in range(100)].index(True) == 20


def test_large_share_of_few_records_is_within_the_limit() -> None:
    rate = DeadLetterRate(DeadLetterLimit(window=100, max_share=0.1, max_count=50))
    rate.add_processed(10)
    assert not any(rate.add_failure(ahead=n) for n in range(50))


def test_errors_leave_the_window() -> None:
    rate = DeadLetterRate(DeadLetterLimit(window=100, max_share=0.1, max_count=20))
    assert not any(rate.add_failure(ahead=n) for n in range(20))
    rate.add_processed(120)
    assert not any(rate.add_failure(ahead=n) for n in range(20))
    assert rate.add_failure(ahead=20)


def test_many_errors_with_one_key_count_once() -> None:
    rate = DeadLetterRate(DeadLetterLimit())
    assert not any(rate.add_failure(ahead=n, key=b"one response") for n in range(5_000))
    others = [rate.add_failure(ahead=5_000 + n, key=b"%d" % n) for n in range(200)]
    assert others.index(True) < 120


def test_rolled_back_slice_is_not_counted_twice() -> None:
    rate = DeadLetterRate(DeadLetterLimit())
    rate.add_processed(200)
    for _ in range(10):
        saved = rate.save()
        assert not any(rate.add_failure(ahead=n) for n in range(15))
        rate.add_processed(15)
        rate.roll_back(saved)


@pytest.mark.parametrize("error", [Malformed("x"), Oversized("x"), RefusedByBroker("x"), Skipped("x")])
def test_what_is_the_records_fault_is_no_unexpected_error(error: Exception) -> None:
    assert not is_unexpected(error)


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), Fatal("x"), BrokerUnavailable("x")])
def test_everything_else_is_unexpected(error: Exception) -> None:
    assert is_unexpected(error)


# --- their contents -----------------------------------------------------------------------------------------------


def test_dead_letter_carries_the_record_its_origin_and_the_error() -> None:
    dead_letter = make_dead_letter("dead.letters", RECORD, Conflict("other content"), "processor", 1_000_000)
    assert (dead_letter.topic, dead_letter.key, dead_letter.value) == ("dead.letters", b"key", b"bytes")
    assert dict(dead_letter.headers) == {
        "ce_id": b"1",
        "dl_topic": b"feedback.events",
        "dl_partition": b"3",
        "dl_offset": b"42",
        "dl_timestamp": b"1700",
        "dl_class": b"conflict",
        "dl_message": b"other content",
        "dl_service": b"processor",
    }


def test_dead_letter_never_exceeds_the_record_limit() -> None:
    large = Record("t", 0, 1, 2, b"k" * 9_000, b"v" * 9_000, ())
    error = ValueError("x" * 100_000 + "\udcff")
    dead_letter = make_dead_letter("dead", large, error, "processor", 10_000)
    assert dead_letter.value is None
    assert dead_letter.key is None
    assert dict(dead_letter.headers)["dl_omitted"] == b"18000"
    assert record_size(dead_letter.key, dead_letter.value, dead_letter.headers) < 4_096
