"""Tests of the slice size after aborts: bisecting to the record that causes them."""

from __future__ import annotations

from shared.stream.slice_bisection import RecordId, SliceSize

FIRST: RecordId = ("t", 0, 5)


def aborts_until_given_up(size: SliceSize, *, caused_by_record: bool, limit: int = 200) -> int | None:
    """Return how many aborts at the same record it takes until that record is given up, or None."""
    for count in range(1, limit):
        if size.aborted(FIRST, caused_by_record=caused_by_record):
            return count
    return None


def test_three_aborts_at_the_same_record_halve_the_slice() -> None:
    size = SliceSize(4_000)
    assert [size.aborted(FIRST, caused_by_record=True) for _ in range(2)] == [False, False]
    assert size.records == 4_000
    assert not size.aborted(FIRST, caused_by_record=True)
    assert size.records == 2_000


def test_slice_is_halved_to_one_record_which_is_given_up() -> None:
    size = SliceSize(8)
    assert aborts_until_given_up(size, caused_by_record=True) == 4 * 3  # at 8, 4, 2 and 1
    assert size.records == 1


def test_unreachable_broker_gives_no_record_up() -> None:
    size = SliceSize(8)
    assert aborts_until_given_up(size, caused_by_record=False) is None
    assert size.records == 1


def test_dead_letter_is_given_up_only_after_three_more_aborts() -> None:
    size = SliceSize(1)
    assert aborts_until_given_up(size, caused_by_record=True) == 3
    assert aborts_until_given_up(size, caused_by_record=False) is None
    assert aborts_until_given_up(size, caused_by_record=True) == 3


def test_another_first_record_restarts_the_count() -> None:
    size = SliceSize(8)
    for offset in range(10):
        assert not size.aborted(("t", 0, offset), caused_by_record=True)
    assert size.records == 8


def test_commits_double_the_slice_up_to_its_configured_size() -> None:
    size = SliceSize(10)
    for _ in range(6):
        size.aborted(FIRST, caused_by_record=True)
    assert size.records == 2
    sizes = []
    for _ in range(4):
        size.committed()
        sizes.append(size.records)
    assert sizes == [4, 8, 10, 10]
