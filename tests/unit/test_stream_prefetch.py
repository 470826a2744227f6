"""Tests of prefetching: it changes when the store is read, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import pytest

from shared.kafka_connection import KafkaConnection
from shared.records import Record
from shared.stream.config import EngineConfig
from shared.stream.partition import OwnedPartition, PartitionSlice
from shared.stream.prefetch import MAX_BYTES, MIN_RECORDS, Prefetcher
from shared.stream.state_store import MemoryStore, StoreFailed
from shared.stream.write_buffer import WriteBuffer

MANY = MIN_RECORDS * 2


class RecordingStore(MemoryStore):
    """Records how it was read, and by which thread; optionally fails."""

    def __init__(self, number: int, *, fails: bool = False) -> None:
        super().__init__(number)
        self.single_reads: list[bytes] = []
        self.bulk_reads: list[bytes] = []
        self.threads: set[str] = set()
        self._fails = fails

    def get(self, key: bytes) -> bytes | None:
        self.single_reads.append(key)
        return super().get(key)

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        if self._fails:
            raise StoreFailed("disk failed")
        self.threads.add(threading.current_thread().name)
        self.bulk_reads += keys
        return super().get_many(keys)


class PrefetchingEcho:
    """A step that predicts one key per record."""

    def prefetch_keys(self, record: Record) -> Iterable[bytes]:
        return () if record.key is None else (record.key,)


def slice_of(store: RecordingStore, records: int, keys: int = 10) -> PartitionSlice:
    """Return a slice of `records` records over `keys` keys."""
    config = EngineConfig(
        kafka=KafkaConnection("broker:9092"), application="a", instance="one", inputs=("in",), changelog="changelog",
        dead_letters="dead", outputs=frozenset(),
    )  # fmt: skip
    made = [Record("in", store.partition, n, 1, b"k%d" % (n % keys), b"v") for n in range(records)]
    return PartitionSlice(OwnedPartition(store.partition, config, store), made, WriteBuffer(store, 1_000_000))


def test_each_key_is_read_once_and_in_order() -> None:
    store = RecordingStore(0)
    store.apply({b"k%d" % n: b"value %d" % n for n in range(5)}, 1)
    (part,) = Prefetcher(PrefetchingEcho()).prefetch([slice_of(store, MANY)])
    assert store.bulk_reads == sorted(b"k%d" % n for n in range(10))
    state = part.write_buffer
    assert [state.get(b"k%d" % n) for n in range(10)] == [b"value %d" % n for n in range(5)] + [None] * 5
    assert store.single_reads == []
    assert store.threads == {"prefetch_0"}


def test_write_of_the_slice_hides_the_prefetched_value() -> None:
    store = RecordingStore(0)
    store.apply({b"k1": b"old", b"k2": b"old"}, 1)
    part = slice_of(store, MANY)
    part.write_buffer.put(b"k1", b"new")
    list(Prefetcher(PrefetchingEcho()).prefetch([part]))
    part.write_buffer.put(b"k2", b"new")
    assert [part.write_buffer.get(key) for key in (b"k1", b"k2")] == [b"new", b"new"]


def test_parts_keep_their_order_and_small_ones_are_not_prefetched() -> None:
    stores = [RecordingStore(n) for n in range(4)]
    parts = [slice_of(store, size) for store, size in zip(stores, (MANY, 1, 0, MANY), strict=True)]
    assert list(Prefetcher(PrefetchingEcho()).prefetch(parts)) == parts
    assert [bool(store.bulk_reads) for store in stores] == [True, False, False, True]


def test_step_without_prediction_reads_on_demand() -> None:
    store = RecordingStore(0)
    parts = [slice_of(store, MANY)]
    assert list(Prefetcher(lambda _state, _record: ()).prefetch(parts)) == parts
    assert store.bulk_reads == []


def test_prefetch_stops_at_its_limit() -> None:
    store = RecordingStore(0)
    value = bytes(MAX_BYTES // 256)
    store.apply({b"k%d" % n: value for n in range(2_000)}, 1)
    (part,) = Prefetcher(PrefetchingEcho()).prefetch([slice_of(store, 2_000, keys=2_000)])
    assert 256 <= len(store.bulk_reads) < 1_100
    assert all(part.write_buffer.get(b"k%d" % n) == value for n in range(2_000))


def test_store_failure_is_raised_before_its_part() -> None:
    parts = [slice_of(RecordingStore(0), MANY), slice_of(RecordingStore(1, fails=True), MANY)]
    each = Prefetcher(PrefetchingEcho()).prefetch(parts)
    assert next(each) is parts[0]
    with pytest.raises(StoreFailed, match="disk failed"):
        next(each)


def test_closing_the_generator_waits_for_the_last_read() -> None:
    reading, may_end = threading.Event(), threading.Event()

    class Slow(RecordingStore):
        def get_many(self, keys: list[bytes]) -> list[bytes | None]:
            reading.set()
            assert may_end.wait(10)
            return super().get_many(keys)

    slow = Slow(1)
    each = Prefetcher(PrefetchingEcho()).prefetch([slice_of(RecordingStore(0), MANY), slice_of(slow, MANY)])
    next(each)
    assert reading.wait(10)
    threading.Timer(0.1, may_end.set).start()
    each.close()
    assert slow.bulk_reads
