"""The inputs of a partition are merged by append time: no topic runs ahead of another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shared.records import Record
from shared.stream.merge import MergeBuffer


def record(topic: str, offset: int, timestamp: int, value: bytes = b"") -> Record:
    return Record(topic, 0, offset, timestamp, None, value)


def filled(topics: dict[str, list[int]], *, ended: tuple[str, ...]) -> MergeBuffer:
    merge = MergeBuffer(tuple(topics))
    for topic, times in topics.items():
        for offset, time in enumerate(times):
            merge.add(record(topic, offset, time))
    for topic in ended:
        merge.mark_end(topic)
    return merge


def seen(records: list[Record]) -> list[tuple[str, int]]:
    return [(r.topic, r.offset) for r in records]


def test_an_empty_input_that_has_not_reached_its_end_holds_the_others_back() -> None:
    merge = filled({"a": [1, 2], "b": []}, ended=("a",))
    assert merge.take(10, 1 << 20) == []
    merge.mark_end("b")
    assert seen(merge.take(10, 1 << 20)) == [("a", 0), ("a", 1)]


def test_a_topic_far_ahead_waits_for_the_older_records_of_another() -> None:
    merge = filled({"a": [100, 101, 102], "b": [1, 2]}, ended=("a",))
    assert seen(merge.take(10, 1 << 20)) == [("b", 0), ("b", 1)]
    assert merge.take(10, 1 << 20) == []  # b may still bring older ones
    merge.add(record("b", 2, 101))
    assert seen(merge.take(10, 1 << 20)) == [("a", 0), ("a", 1), ("b", 2)]


def test_ties_go_to_the_input_named_first() -> None:
    merge = filled({"a": [5, 5], "b": [5], "c": [4, 5]}, ended=("a", "b", "c"))
    assert seen(merge.take(10, 1 << 20)) == [("c", 0), ("a", 0), ("a", 1), ("b", 0), ("c", 1)]


def test_what_was_put_back_comes_out_again_in_the_same_order() -> None:
    merge = filled({"a": [1, 3, 5], "b": [2, 4]}, ended=("a", "b"))
    before = merge.bytes_of("a"), merge.bytes_of("b")
    taken = merge.take(4, 1 << 20)
    merge.put_back(taken)
    assert (merge.bytes_of("a"), merge.bytes_of("b")) == before
    assert merge.take(4, 1 << 20) == taken


def test_an_offset_that_was_added_before_is_left_out() -> None:
    merge = filled({"a": [1, 2]}, ended=("a",))
    merge.add(record("a", 1, 2))
    assert merge.count() == 2


def test_weight_bounds_a_slice_but_a_heavy_record_still_passes() -> None:
    merge = MergeBuffer(("a",))
    for offset in range(3):
        merge.add(record("a", offset, offset, b"x" * 5_000))
    assert len(merge.take(10, 7_000)) == 2
    assert len(merge.take(10, 1)) == 1
    assert merge.bytes_of("a") == 0


def test_a_new_record_ends_the_quiet() -> None:
    merge = filled({"a": [], "b": []}, ended=("a", "b"))
    assert merge.is_idle()
    merge.add(record("a", 0, 1))
    assert not merge.is_idle()
    merge.take(1, 1 << 20)
    assert not merge.is_idle()  # its end has to be reached anew
    merge.mark_end("a")
    assert merge.is_idle()
    assert merge.is_drained("a")


@given(
    inputs=st.lists(st.lists(st.integers(0, 30), max_size=20).map(sorted), min_size=1, max_size=4),
    arrivals=st.randoms(use_true_random=False),
    limit=st.integers(1, 7),
)
def test_in_whatever_order_records_arrive_they_leave_by_time(
    inputs: list[list[int]], arrivals: object, limit: int
) -> None:
    """Takes between arrivals, at random; each input announces its end after its last record."""
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
