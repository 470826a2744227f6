"""Tests of the merge of a partition's inputs by append time: no topic runs ahead of another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shared.records import Record
from shared.stream.merge import MergeBuffer


def record(topic: str, offset: int, timestamp: int, value: bytes = b"") -> Record:
    return Record(topic, 0, offset, timestamp, None, value)


def buffer_with(topics: dict[str, list[int]], *, at_end: tuple[str, ...]) -> MergeBuffer:
    """Return a buffer with one record per timestamp; the topics `at_end` hold no further records in the log."""
    merge = MergeBuffer(tuple(topics))
    for topic, times in topics.items():
        for offset, time in enumerate(times):
            merge.add(record(topic, offset, time))
    for topic in at_end:
        merge.mark_end(topic)
    return merge


def ids(records: list[Record]) -> list[tuple[str, int]]:
    return [(r.topic, r.offset) for r in records]


def test_empty_input_before_its_end_blocks_the_others() -> None:
    merge = buffer_with({"a": [1, 2], "b": []}, at_end=("a",))
    assert merge.take(10, 1 << 20) == []
    merge.mark_end("b")
    assert ids(merge.take(10, 1 << 20)) == [("a", 0), ("a", 1)]


def test_topic_far_ahead_waits_for_older_records_of_another() -> None:
    merge = buffer_with({"a": [100, 101, 102], "b": [1, 2]}, at_end=("a",))
    assert ids(merge.take(10, 1 << 20)) == [("b", 0), ("b", 1)]
    assert merge.take(10, 1 << 20) == []  # b may still have older records
    merge.add(record("b", 2, 101))
    assert ids(merge.take(10, 1 << 20)) == [("a", 0), ("a", 1), ("b", 2)]


def test_first_named_input_wins_at_equal_append_times() -> None:
    merge = buffer_with({"a": [5, 5], "b": [5], "c": [4, 5]}, at_end=("a", "b", "c"))
    assert ids(merge.take(10, 1 << 20)) == [("c", 0), ("a", 0), ("a", 1), ("b", 0), ("c", 1)]


def test_put_back_records_come_again_in_the_same_order() -> None:
    merge = buffer_with({"a": [1, 3, 5], "b": [2, 4]}, at_end=("a", "b"))
    before = merge.bytes_of("a"), merge.bytes_of("b")
    taken = merge.take(4, 1 << 20)
    merge.put_back(taken)
    assert (merge.bytes_of("a"), merge.bytes_of("b")) == before
    assert merge.take(4, 1 << 20) == taken


def test_offset_added_twice_is_buffered_once() -> None:
    merge = buffer_with({"a": [1, 2]}, at_end=("a",))
    merge.add(record("a", 1, 2))
    assert merge.count() == 2


def test_bytes_limit_a_slice_but_one_large_record_passes() -> None:
    merge = MergeBuffer(("a",))
    for offset in range(3):
        merge.add(record("a", offset, offset, b"x" * 5_000))
    assert len(merge.take(10, 7_000)) == 2
    assert len(merge.take(10, 1)) == 1
    assert merge.bytes_of("a") == 0


def test_new_record_ends_idleness() -> None:
    merge = buffer_with({"a": [], "b": []}, at_end=("a", "b"))
    assert merge.is_idle()
    merge.add(record("a", 0, 1))
    assert not merge.is_idle()
    merge.take(1, 1 << 20)
    assert not merge.is_idle()  # the end must be reached again
    merge.mark_end("a")
    assert merge.is_idle()
    assert merge.is_drained("a")


@given(
    inputs=st.lists(st.lists(st.integers(0, 30), max_size=20).map(sorted), min_size=1, max_size=4),
    arrivals=st.randoms(use_true_random=False),
    limit=st.integers(1, 7),
)
def test_records_leave_by_time_in_any_order_of_arrival(
    inputs: list[list[int]], arrivals: object, limit: int
) -> None:
    """Slices are taken between arrivals at random; each input reaches its end after its last record."""
    topics = [f"t{i}" for i in range(len(inputs))]
    waiting = {t: [record(t, o, time) for o, time in enumerate(inputs[i])] for i, t in enumerate(topics)}
    merge, out = MergeBuffer(topics), []
    while waiting:
        topic = arrivals.choice(sorted(waiting))  # type: ignore[attr-defined]
        if waiting[topic]:
            merge.add(waiting[topic].pop(0))
        else:
            merge.mark_end(topic)
            del waiting[topic]
        taken = merge.take(limit, 1 << 20)
        if arrivals.random() < 0.3:  # type: ignore[attr-defined]
            merge.put_back(taken)
        else:
            out += taken
    while taken := merge.take(limit, 1 << 20):
        out += taken
    expected = sorted(
        (time, i, offset) for i, times in enumerate(inputs) for offset, time in enumerate(times)
    )
    assert [(r.timestamp, topics.index(r.topic), r.offset) for r in out] == expected
