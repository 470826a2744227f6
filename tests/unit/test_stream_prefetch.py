"""Reads ahead of a slice: they change nothing but when the store is asked."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import pytest

from shared.records import Record
from shared.stream.config import EngineConfig
from shared.stream.partition import OwnedPartition, PartitionSlice
from shared.stream.prefetch import MAX_BYTES, MIN_RECORDS, Prefetcher
from shared.stream.state_store import MemoryStore, StoreFailed

MANY = MIN_RECORDS * 2


class Asked(MemoryStore):
    """Notes how it was asked, and by which thread; fails as told."""

    def __init__(self, number: int, *, fails: bool = False) -> None:
        super().__init__(number)
        self.alone: list[bytes] = []
        self.together: list[bytes] = []
        self.threads: set[str] = set()
        self._fails = fails

    def get(self, key: bytes) -> bytes | None:
        self.alone.append(key)
        return super().get(key)

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        if self._fails:
            raise StoreFailed("the disk is gone")
        self.threads.add(threading.current_thread().name)
        self.together += keys
        return super().get_many(keys)


class Telling:
    def prefetch_keys(self, record: Record) -> Iterable[bytes]:
        return () if record.key is None else (record.key,)


def share_of(store: Asked, records: int, keys: int = 10) -> PartitionSlice:
    config = EngineConfig(
        bootstrap_servers="broker:9092", application="a", instance="one", inputs=("in",), changelog="changelog",
        dead_letters="dead", outputs=frozenset(),
    )  # fmt: skip
    found = [Record("in", store.partition, n, 1, b"k%d" % (n % keys), b"v") for n in range(records)]
    return PartitionSlice(OwnedPartition(store.partition, config, store), found)


def test_each_key_is_read_once_in_order_and_then_the_store_is_not_asked_again() -> None:
    store = Asked(0)
    store.apply({b"k%d" % n: b"value %d" % n for n in range(5)}, 1)
    (share,) = Prefetcher(Telling()).prefetch([share_of(store, MANY)])
    assert store.together == sorted(b"k%d" % n for n in range(10))
    overlay = share.partition.write_buffer
    assert [overlay.get(b"k%d" % n) for n in range(10)] == [b"value %d" % n for n in range(5)] + [None] * 5
    assert store.alone == []
    assert store.threads == {"ahead_0"}


def test_what_the_slice_wrote_goes_before_what_was_read_ahead() -> None:
    store = Asked(0)
    store.apply({b"k1": b"old", b"k2": b"old"}, 1)
    share = share_of(store, MANY)
    share.partition.write_buffer.put(b"k1", b"new")
    list(Prefetcher(Telling()).prefetch([share]))
    share.partition.write_buffer.put(b"k2", b"new")
    assert [share.partition.write_buffer.get(key) for key in (b"k1", b"k2")] == [b"new", b"new"]


def test_shares_keep_their_order_and_small_ones_are_left_to_themselves() -> None:
    stores = [Asked(n) for n in range(4)]
    shares = [share_of(store, size) for store, size in zip(stores, (MANY, 1, 0, MANY), strict=True)]
    assert list(Prefetcher(Telling()).prefetch(shares)) == shares
    assert [bool(store.together) for store in stores] == [True, False, False, True]


def test_a_step_that_tells_nothing_is_read_for_on_demand() -> None:
    store = Asked(0)
    shares = [share_of(store, MANY)]
    assert list(Prefetcher(lambda _state, _record: ()).prefetch(shares)) == shares
    assert store.together == []


def test_it_stops_at_its_bound_and_the_rest_is_read_on_demand() -> None:
    store = Asked(0)
    value = bytes(MAX_BYTES // 256)
    store.apply({b"k%d" % n: value for n in range(2_000)}, 1)
    (share,) = Prefetcher(Telling()).prefetch([share_of(store, 2_000, keys=2_000)])
    assert 256 <= len(store.together) < 1_100
    assert all(share.partition.write_buffer.get(b"k%d" % n) == value for n in range(2_000))


def test_a_store_that_fails_fails_the_slice_before_its_share_is_touched() -> None:
    shares = [share_of(Asked(0), MANY), share_of(Asked(1, fails=True), MANY)]
    each = Prefetcher(Telling()).prefetch(shares)
    assert next(each) is shares[0]
    with pytest.raises(StoreFailed, match="the disk is gone"):
        next(each)


def test_where_the_slice_ends_early_no_read_goes_on_behind_it() -> None:
    reading, may_end = threading.Event(), threading.Event()

    class Slow(Asked):
        def get_many(self, keys: list[bytes]) -> list[bytes | None]:
            reading.set()
            assert may_end.wait(10)
            return super().get_many(keys)

    slow = Slow(1)
    each = Prefetcher(Telling()).prefetch([share_of(Asked(0), MANY), share_of(slow, MANY)])
    next(each)
    assert reading.wait(10)
    threading.Timer(0.1, may_end.set).start()
    each.close()
    assert slow.together
