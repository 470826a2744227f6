"""What a partition keeps of a reread: where it stands, what a slice takes of it, what an abort brings back."""

from __future__ import annotations

import pytest

from shared.records import Record
from shared.stream.config import EngineConfig
from shared.stream.offsets import Positions
from shared.stream.output_rereader import Reading
from shared.stream.partition import OwnedPartition, Share
from shared.stream.state_store import POSITIONS_KEY, MemoryStore
from shared.stream.step import Through

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
    owned.readings["out"] = Reading(0, 5)
    return owned


def take(partition: OwnedPartition, reread: int = 64, now: float = 0.0) -> Share:
    return partition.take(100, 1 << 20, now=now, clock_ms=0, tick_interval=1.0, reread=reread)


def commit(partition: OwnedPartition, share: Share) -> None:
    """As a slice does whose step raised on nothing."""
    for through in share.through:
        del share.after.rereads[through.topic]
        partition.fed_through(through, 0.0, 1.0, raised=False)
    share.changelog_offset = 0
    partition.committed(share, 0)


def test_positions_survive_with_what_is_being_reread() -> None:
    positions = Positions({"a": 12}, 1_700, {"out": 4})
    assert Positions.decode(positions.encode()) == positions


def test_positions_written_before_there_were_rereads_are_read() -> None:
    found = Positions.decode(b'{"schema_version": 1, "offsets": {"a": 1}, "time_ms": 2}')
    assert found == Positions({"a": 1}, 2, {})


def test_a_slice_takes_so_many_and_no_more_and_the_position_follows(partition: OwnedPartition) -> None:
    for offset in range(4):
        partition.readings["out"].add(made(offset))
    share = take(partition, reread=3)
    assert [record.offset for record in share.reread] == [0, 1, 2]
    assert share.after.rereads == {"out": 3}
    assert not share.through
    commit(partition, share)
    assert partition.positions.rereads == {"out": 3}
    assert Positions.decode(partition.store.get(POSITIONS_KEY) or b"").rereads == {"out": 3}


def test_what_is_reread_has_the_time_of_the_partition(partition: OwnedPartition) -> None:
    partition.readings["out"].add(made(0))
    partition.merge.add(made(3, "a", timestamp=250))
    share = take(partition)
    assert [record.timestamp for record in share.records + share.reread] == [250, 250]
    partition.aborted(share)
    partition.merge.take(1, 1)
    assert [record.timestamp for record in take(partition).reread] == [100]


def test_an_abort_brings_back_what_was_taken_in_the_same_order(partition: OwnedPartition) -> None:
    for offset in range(4):
        partition.readings["out"].add(made(offset))
    heavy = partition.readings["out"].bytes
    partition.aborted(take(partition, reread=3))
    assert partition.positions.rereads == {"out": 0}
    assert partition.readings["out"].bytes == heavy
    assert [record.offset for record in take(partition).reread] == [0, 1, 2, 3]


def test_the_end_is_told_once_after_the_last_record(partition: OwnedPartition) -> None:
    for offset in (0, 4):  # what lay between was compacted away
        partition.readings["out"].add(made(offset))
    assert not take(partition, reread=1).through
    share = take(partition)
    assert share.through == [Through("out", 0, 100)]
    commit(partition, share)
    assert partition.positions.rereads == {}
    assert partition.readings == {}
    assert not take(partition).through


def test_an_abort_has_the_end_told_again(partition: OwnedPartition) -> None:
    partition.readings["out"].position = 5
    partition.aborted(take(partition))
    assert take(partition).through == [Through("out", 0, 100)]


def test_an_end_on_which_the_step_raised_is_told_again_after_a_while(partition: OwnedPartition) -> None:
    partition.readings["out"].position = 5
    share = take(partition)
    assert partition.fed_through(share.through[0], 0.0, 1.0, raised=True) == 1
    share.changelog_offset = 0
    partition.committed(share, 0)
    assert not take(partition, now=0.9).through
    assert take(partition, now=1.0).through == share.through


def test_what_was_appended_after_the_end_is_not_fed(partition: OwnedPartition) -> None:
    partition.readings["out"].add(made(3))
    partition.readings["out"].add(made(5))
    share = take(partition)
    assert [record.offset for record in share.reread] == [3]
    assert share.through
