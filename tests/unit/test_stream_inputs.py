"""Tests of the input consumer without a broker: rebalance callbacks, and timestamps of producers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from confluent_kafka import (
    TIMESTAMP_CREATE_TIME,
    TIMESTAMP_LOG_APPEND_TIME,
    TIMESTAMP_NOT_AVAILABLE,
    TopicPartition,
)

from shared.adapters.clock import ManualClock
from shared.errors import Misconfigured
from shared.stream.inputs import InputConsumer
from shared.stream.partition import OwnedPartition
from shared.stream.state_store import MemoryStore
from tests.unit.test_stream_config import config


class FakeConsumer:
    """Consumer that is passed to rebalance callbacks. Records its assignment."""

    def __init__(self) -> None:
        self.assignment: list[TopicPartition] | None = None

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.assignment = partitions


def test_same_partition_of_every_input_must_be_assigned_together() -> None:
    inputs, consumer = InputConsumer(config()), FakeConsumer()
    assignment = [TopicPartition(topic, number) for topic in "ab" for number in (2, 0)]
    inputs._on_assign(consumer, assignment)  # type: ignore[arg-type]
    assert inputs.assigned == [0, 2]
    assert consumer.assignment == []  # nothing is read before the state is restored
    with pytest.raises(Misconfigured, match="assigned to one member"):
        inputs._on_assign(consumer, assignment[:3])  # type: ignore[arg-type]
    inputs.close()


def test_lost_partitions_are_distinguished_from_revoked_ones() -> None:
    inputs, consumer = InputConsumer(config()), FakeConsumer()
    inputs._on_assign(consumer, [TopicPartition(topic, 0) for topic in "ab"])  # type: ignore[arg-type]
    inputs._on_lost(consumer, [])  # type: ignore[arg-type]
    assert inputs.assigned is None
    assert inputs.revoke_reason is not None
    assert inputs.revoke_reason.startswith("lost")
    inputs._on_revoke(consumer, [])  # type: ignore[arg-type]
    assert inputs.revoke_reason == "handed over"
    inputs.close()


def test_buffer_is_shared_by_owned_partitions_not_by_all_of_the_topic() -> None:
    inputs = InputConsumer(config(buffer_bytes=1_200))
    inputs.start_reading({n: {} for n in range(3)})
    assert inputs._bytes_per_buffer == 1_200 // (3 * 2)
    inputs.start_reading({7: {}})
    assert inputs._bytes_per_buffer == 1_200 // 2
    inputs.start_reading({})
    assert inputs._bytes_per_buffer == 1_200
    inputs.close()


# --- timestamps that the broker did not set -----------------------------------------------------------------------

YEAR_57741_MS = 1_760_000_000_500_000
T0 = 1_700_000_000_000


class FakeMessage:
    """A record of the topic `a` in partition 0, as the client returns it."""

    def __init__(self, time_ms: int, kind: int = TIMESTAMP_CREATE_TIME, offset: int = 0) -> None:
        self._time = kind, time_ms
        self._offset = offset

    def topic(self) -> str:
        return "a"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def timestamp(self) -> tuple[int, int]:
        return self._time

    def key(self) -> bytes:
        return b"k"

    def value(self) -> bytes:
        return b"v"

    def headers(self) -> None:
        return None

    def error(self) -> None:
        return None


def times_read(
    *messages: FakeMessage, stream_ms: int = 0, unverified: frozenset[str] = frozenset(), **settings: object
) -> list[int]:
    """Return the timestamps of records read into a partition whose stream time is `stream_ms`."""
    inputs = InputConsumer(config(**settings), ManualClock(T0))
    inputs.unverified = unverified
    inputs.close()
    inputs._consumer = SimpleNamespace(consume=lambda *_: list(messages), pause=lambda _: None)  # type: ignore[assignment]
    inputs._bytes_per_buffer = 1 << 20
    partition = OwnedPartition(0, config(), MemoryStore())
    partition.positions.time_ms = stream_ms
    partition.merge_buffer.mark_end("b")
    inputs.read({0: partition}, 10, 0.0)
    return [record.timestamp for record in partition.merge_buffer.take(10, 1 << 20)]


def test_append_times_are_taken_as_they_are() -> None:
    future = FakeMessage(T0 + 5, TIMESTAMP_LOG_APPEND_TIME)
    assert times_read(future, stream_ms=T0) == [T0 + 5]


@pytest.mark.parametrize("stamp", [YEAR_57741_MS, T0 + 1, T0 + 31 * 86_400_000])
def test_producers_timestamp_moves_no_stream_time(stamp: int) -> None:
    assert times_read(FakeMessage(stamp), stream_ms=T0) == [T0]
    assert times_read(FakeMessage(stamp)) == [T0]


@pytest.mark.parametrize("stamp", [-1, 0])
def test_missing_timestamp_is_not_negative(stamp: int) -> None:
    assert times_read(FakeMessage(stamp, TIMESTAMP_NOT_AVAILABLE), stream_ms=T0) == [0]


def test_older_producers_timestamp_is_kept() -> None:
    assert times_read(FakeMessage(T0 - 7), stream_ms=T0) == [T0 - 7]


def test_producers_timestamp_is_refused_if_settings_are_unknown() -> None:
    with pytest.raises(Misconfigured, match=r"a \[0\] offset 4.*--apply.*DESCRIBE_CONFIGS"):
        times_read(FakeMessage(T0, offset=4), unverified=frozenset({"a"}))


def test_chosen_timestamps_are_accepted_on_request() -> None:
    assert times_read(FakeMessage(T0 + 9), stream_ms=T0, require_append_time=False) == [T0 + 9]
