"""Tests of an owned partition: its positions, and what slices and aborts do to a reread."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shared.errors import Fatal
from shared.kafka_connection import KafkaConnection
from shared.records import Record
from shared.stream.config import EngineConfig
from shared.stream.partition import OwnedPartition, PartitionSlice, Positions, RereadCursor
from shared.stream.state_store import POSITIONS_KEY, MemoryStore
from shared.stream.step import RereadComplete

CONFIG = EngineConfig(
    kafka=KafkaConnection("broker:9092"),
    application="processor",
    instance="one",
    inputs=("a",),
    changelog="c",
    dead_letters="d",
    outputs=frozenset({"out"}),
)


def record(offset: int, topic: str = "out", timestamp: int = 7) -> Record:
    return Record(topic, 0, offset, timestamp, b"k", b"v")


@pytest.fixture
def partition() -> OwnedPartition:
    """A partition that rereads the topic `out` up to offset 5. Its input is not at its end, so no tick is due."""
    owned = OwnedPartition(0, CONFIG, MemoryStore())
    owned.positions = Positions({"a": 3}, 100, {"out": 0})
    owned.reread_cursors["out"] = RereadCursor(0, 5)
    return owned


def take_slice(partition: OwnedPartition, max_reread: int = 64, now: float = 0.0) -> PartitionSlice:
    return partition.take_slice(
        100, 1 << 20, now=now, clock_ms=0, tick_interval=1.0, max_reread_records=max_reread
    )


def commit(partition: OwnedPartition, part: PartitionSlice) -> None:
    """Commit a slice on which the step did not raise."""
    for completion in part.completed_rereads:
        del part.new_positions.rereads[completion.topic]
        partition.record_completion(completion, 0.0, 1.0, raised=False)
    part.changelog_offset = 0
    partition.apply_commit(part, 0)


# --- positions in the changelog -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "positions", [Positions({"a": 12, "b": 0}, 1_700), Positions({"a": 12}, 1_700, {"out": 4})]
)
def test_positions_survive_encoding(positions: Positions) -> None:
    assert Positions.decode(positions.encode()) == positions


def test_positions_without_rereads_are_decoded() -> None:
    positions = Positions.decode(b'{"schema_version": 1, "offsets": {"a": 1}, "time_ms": 2}')
    assert positions == Positions({"a": 1}, 2, {})


@pytest.mark.parametrize("value", [b"", b"{}", b"[]", b'{"offsets": {"a": "x"}, "time_ms": 1}'])
def test_changelog_of_another_program_is_refused(value: bytes) -> None:
    with pytest.raises(Fatal, match="another program"):
        Positions.decode(value)


# --- rereads ------------------------------------------------------------------------------------------------------


def test_slice_takes_a_limited_number_and_advances_the_position(partition: OwnedPartition) -> None:
    for offset in range(4):
        partition.reread_cursors["out"].add(record(offset))
    part = take_slice(partition, max_reread=3)
    assert [each.offset for each in part.reread_records] == [0, 1, 2]
    assert part.new_positions.rereads == {"out": 3}
    assert not part.completed_rereads
    commit(partition, part)
    assert partition.positions.rereads == {"out": 3}
    assert Positions.decode(partition.store.get(POSITIONS_KEY) or b"").rereads == {"out": 3}


def test_reread_records_carry_the_partitions_time(partition: OwnedPartition) -> None:
    partition.reread_cursors["out"].add(record(0))
    partition.merge_buffer.add(record(3, "a", timestamp=250))
    part = take_slice(partition)
    assert [each.timestamp for each in part.records + part.reread_records] == [250, 250]
    partition.roll_back(part)
    partition.merge_buffer.take(1, 1)
    assert [each.timestamp for each in take_slice(partition).reread_records] == [100]


def test_abort_returns_reread_records_in_the_same_order(partition: OwnedPartition) -> None:
    for offset in range(4):
        partition.reread_cursors["out"].add(record(offset))
    buffered = partition.reread_cursors["out"].buffered_bytes
    partition.roll_back(take_slice(partition, max_reread=3))
    assert partition.positions.rereads == {"out": 0}
    assert partition.reread_cursors["out"].buffered_bytes == buffered
    assert [each.offset for each in take_slice(partition).reread_records] == [0, 1, 2, 3]


def test_completion_comes_once_after_the_last_record(partition: OwnedPartition) -> None:
    for offset in (0, 4):  # compaction removed those in between
        partition.reread_cursors["out"].add(record(offset))
    assert not take_slice(partition, max_reread=1).completed_rereads
    part = take_slice(partition)
    assert part.completed_rereads == [RereadComplete("out", 0, 100)]
    commit(partition, part)
    assert partition.positions.rereads == {}
    assert partition.reread_cursors == {}
    assert not take_slice(partition).completed_rereads


def test_completion_comes_again_after_an_abort(partition: OwnedPartition) -> None:
    partition.reread_cursors["out"].position = 5
    partition.roll_back(take_slice(partition))
    assert take_slice(partition).completed_rereads == [RereadComplete("out", 0, 100)]


def test_completion_that_raised_comes_again_after_a_while(partition: OwnedPartition) -> None:
    partition.reread_cursors["out"].position = 5
    part = take_slice(partition)
    assert partition.record_completion(part.completed_rereads[0], 0.0, 1.0, raised=True) == 1
    part.changelog_offset = 0
    partition.apply_commit(part, 0)
    assert not take_slice(partition, now=0.9).completed_rereads
    assert take_slice(partition, now=1.0).completed_rereads == part.completed_rereads


def test_record_appended_after_the_end_is_not_reread(partition: OwnedPartition) -> None:
    partition.reread_cursors["out"].add(record(3))
    partition.reread_cursors["out"].add(record(5))
    part = take_slice(partition)
    assert [each.offset for each in part.reread_records] == [3]
    assert part.completed_rereads


def test_slice_taken_during_a_commit_continues_from_it() -> None:
    """It sees the other slice's positions, time and state; if both fail, all records come again in order."""
    partition = OwnedPartition(0, replace(CONFIG, inputs=("a", "b")), MemoryStore())
    partition.merge_buffer.add(record(7, "a", timestamp=200))
    partition.merge_buffer.mark_end("b")
    first = take_slice(partition)
    first.write_buffer.put(b"k", b"1")
    partition.begin_commit(first)
    partition.merge_buffer.add(record(3, "b", timestamp=150))
    partition.merge_buffer.mark_end("a")
    second = take_slice(partition)
    assert [each.offset for each in second.records] == [3]
    assert second.new_positions.offsets == {"a": 8, "b": 4}
    assert second.new_positions.time_ms == 150
    assert second.write_buffer.get(b"k") == b"1"
    partition.roll_back(second)
    partition.roll_back(first)
    partition.merge_buffer.mark_end("b")
    again = take_slice(partition)
    assert {(each.topic, each.offset) for each in again.records} == {("a", 7), ("b", 3)}
    assert again.write_buffer.get(b"k") is None


def test_shortened_slice_continues_from_the_one_being_committed(partition: OwnedPartition) -> None:
    """Its positions must not go back: the slice before it is not applied yet."""
    partition.merge_buffer.add(record(3, "a", timestamp=1_700_000_000_000))
    first = take_slice(partition)
    partition.begin_commit(first)
    partition.merge_buffer.add(record(4, "a", timestamp=1_700_000_001_000))
    second = take_slice(partition)
    partition.shorten(second, 0)
    assert second.new_positions.offsets == first.new_positions.offsets == {"a": 4}
    assert second.new_positions.time_ms == 1_700_000_000_000
