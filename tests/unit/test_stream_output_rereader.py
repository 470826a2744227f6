"""What a partition keeps of a reread: where it stands, what a slice takes of it, what an abort brings back."""

from __future__ import annotations

import pytest

from shared.records import Record
from shared.stream.config import EngineConfig
from shared.stream.offsets import Positions
from shared.stream.output_rereader import RereadCursor
from shared.stream.partition import OwnedPartition, PartitionSlice
from shared.stream.state_store import POSITIONS_KEY, MemoryStore
from shared.stream.step import RereadComplete

CONFIG = EngineConfig(
    bootstrap_servers="broker:9092",
    application="processor",
    instance="one",
    inputs=("a",),
    changelog="c",
    dead_letters="d",
    outputs=frozenset({"out"}),
)


def made(offset: int, topic: str = "out", timestamp: int = 7) -> Record:
    return Record(topic, 0, offset, timestamp, b"k", b"v")


@pytest.fixture
def partition() -> OwnedPartition:
    """Inputs are not at their end, so no tick is due; the topic `out` is being reread up to offset 5."""
    owned = OwnedPartition(0, CONFIG, MemoryStore())
    owned.positions = Positions({"a": 3}, 100, {"out": 0})
    owned.reread_cursors["out"] = RereadCursor(0, 5)
    return owned


def take(partition: OwnedPartition, reread: int = 64, now: float = 0.0) -> PartitionSlice:
    return partition.take_slice(100, 1 << 20, now=now, clock_ms=0, tick_interval=1.0, reread=reread)


def commit(partition: OwnedPartition, share: PartitionSlice) -> None:
    """As a slice does whose step raised on nothing."""
    for through in share.completed_rereads:
        del share.new_positions.rereads[through.topic]
        partition.record_completion(through, 0.0, 1.0, raised=False)
    share.changelog_offset = 0
    partition.apply_commit(share, 0)


def test_positions_survive_with_what_is_being_reread() -> None:
    positions = Positions({"a": 12}, 1_700, {"out": 4})
    assert Positions.decode(positions.encode()) == positions


def test_positions_written_before_there_were_rereads_are_read() -> None:
    found = Positions.decode(b'{"schema_version": 1, "offsets": {"a": 1}, "time_ms": 2}')
    assert found == Positions({"a": 1}, 2, {})


def test_a_slice_takes_so_many_and_no_more_and_the_position_follows(partition: OwnedPartition) -> None:
    for offset in range(4):
        partition.reread_cursors["out"].add(made(offset))
    share = take(partition, reread=3)
    assert [record.offset for record in share.reread_records] == [0, 1, 2]
    assert share.new_positions.rereads == {"out": 3}
    assert not share.completed_rereads
    commit(partition, share)
    assert partition.positions.rereads == {"out": 3}
    assert Positions.decode(partition.store.get(POSITIONS_KEY) or b"").rereads == {"out": 3}


def test_what_is_reread_has_the_time_of_the_partition(partition: OwnedPartition) -> None:
    partition.reread_cursors["out"].add(made(0))
    partition.merge_buffer.add(made(3, "a", timestamp=250))
    share = take(partition)
    assert [record.timestamp for record in share.records + share.reread_records] == [250, 250]
    partition.roll_back(share)
    partition.merge_buffer.take(1, 1)
    assert [record.timestamp for record in take(partition).reread_records] == [100]


def test_an_abort_brings_back_what_was_taken_in_the_same_order(partition: OwnedPartition) -> None:
    for offset in range(4):
        partition.reread_cursors["out"].add(made(offset))
    heavy = partition.reread_cursors["out"].buffered_bytes
    partition.roll_back(take(partition, reread=3))
    assert partition.positions.rereads == {"out": 0}
    assert partition.reread_cursors["out"].buffered_bytes == heavy
    assert [record.offset for record in take(partition).reread_records] == [0, 1, 2, 3]


def test_the_end_is_told_once_after_the_last_record(partition: OwnedPartition) -> None:
    for offset in (0, 4):  # what lay between was compacted away
        partition.reread_cursors["out"].add(made(offset))
    assert not take(partition, reread=1).completed_rereads
    share = take(partition)
    assert share.completed_rereads == [RereadComplete("out", 0, 100)]
    commit(partition, share)
    assert partition.positions.rereads == {}
    assert partition.reread_cursors == {}
    assert not take(partition).completed_rereads


def test_an_abort_has_the_end_told_again(partition: OwnedPartition) -> None:
    partition.reread_cursors["out"].position = 5
    partition.roll_back(take(partition))
    assert take(partition).completed_rereads == [RereadComplete("out", 0, 100)]


def test_an_end_on_which_the_step_raised_is_told_again_after_a_while(partition: OwnedPartition) -> None:
    partition.reread_cursors["out"].position = 5
    share = take(partition)
    assert partition.record_completion(share.completed_rereads[0], 0.0, 1.0, raised=True) == 1
    share.changelog_offset = 0
    partition.apply_commit(share, 0)
    assert not take(partition, now=0.9).completed_rereads
    assert take(partition, now=1.0).completed_rereads == share.completed_rereads


def test_what_was_appended_after_the_end_is_not_fed(partition: OwnedPartition) -> None:
    partition.reread_cursors["out"].add(made(3))
    partition.reread_cursors["out"].add(made(5))
    share = take(partition)
    assert [record.offset for record in share.reread_records] == [3]
    assert share.completed_rereads
