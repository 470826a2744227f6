"""Contract of `StateStore`, tested on each implementation. Add a new implementation to `OPENERS`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.stream.rocksdb_store import RocksDBStoreFactory
from shared.stream.state_store import MemoryStore, StateStore


class Opener(Protocol):
    """Opens the store of one partition in an empty folder."""

    def __call__(self, folder: Path) -> StateStore: ...


OPENERS: dict[str, Opener] = {
    "memory": lambda _folder: MemoryStore(),
    "rocksdb": lambda folder: RocksDBStoreFactory(folder, cache_mb=8)(0),
}


@pytest.fixture(params=list(OPENERS.values()), ids=list(OPENERS))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StateStore]:
    opened: StateStore = request.param(tmp_path)
    yield opened
    opened.close()


def test_new_store_is_empty_and_has_no_position(store: StateStore) -> None:
    assert store.changelog_position() is None
    assert store.key_count() == 0
    assert store.get(b"a") is None
    assert list(store.scan(b"", b"\xff")) == []


def test_apply_writes_deletes_and_sets_the_position(store: StateStore) -> None:
    store.apply({b"a": b"1", b"b": b"2"}, 10)
    store.apply({b"a": None, b"b": b"3", b"never": None, b"empty": b""}, 12)
    assert store.changelog_position() == 12
    assert [store.get(k) for k in (b"a", b"b", b"never", b"empty")] == [None, b"3", None, b""]


def test_key_count_is_reported(store: StateStore) -> None:
    store.apply({b"%d" % n: b"" for n in range(10)}, 10)
    assert store.key_count() == 10


def test_size_grows_with_the_contents_if_known(store: StateStore) -> None:
    before = store.size_bytes()
    store.apply({b"%d" % n: bytes(1_000) for n in range(1_000)}, 1_000)
    after = store.size_bytes()
    assert (before is None) == (after is None)
    assert before is None or (after or 0) > before + 500_000


def test_position_advances_without_writes(store: StateStore) -> None:
    store.apply({b"a": b"1"}, 10)
    store.apply({}, 15)
    assert store.changelog_position() == 15
    assert store.get(b"a") == b"1"


def test_scan_is_ordered_by_bytes_and_excludes_its_end(store: StateStore) -> None:
    keys = [b"b", b"a\xff", b"a", b"", b"\x00", b"a\x00", b"\xff\xff"]
    store.apply(dict.fromkeys(keys, b"v"), 1)
    assert [key for key, _ in store.scan(b"", b"\xff\xff\xff")] == sorted(keys)
    assert [key for key, _ in store.scan(b"a", b"b")] == [b"a", b"a\x00", b"a\xff"]
    assert list(store.scan(b"b", b"a")) == []


def test_scan_is_lazy(store: StateStore) -> None:
    store.apply({b"%d" % n: b"" for n in range(1_000)}, 1)
    scan = store.scan(b"", b"\xff")
    assert next(scan) == (b"0", b"")


def test_wiped_store_is_empty_and_usable(store: StateStore) -> None:
    store.apply({b"a": b"1"}, 10)
    store.wipe()
    assert store.changelog_position() is None
    assert store.get(b"a") is None
    store.apply({b"b": b"2"}, 3)
    assert (store.changelog_position(), store.get(b"b")) == (3, b"2")


def test_empty_store_can_be_wiped(store: StateStore) -> None:
    store.wipe()
    assert (store.changelog_position(), store.key_count()) == (None, 0)


def test_store_can_be_closed_twice(store: StateStore) -> None:
    store.close()
    store.close()


BATCH = st.dictionaries(st.binary(max_size=2), st.none() | st.binary(max_size=2), max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(BATCH, max_size=8), start=st.binary(max_size=2), end=st.binary(max_size=2))
def test_store_equals_a_sorted_dict(
    store: StateStore, batches: list[dict[bytes, bytes | None]], start: bytes, end: bytes
) -> None:
    store.wipe()
    model: dict[bytes, bytes] = {}
    for position, batch in enumerate(batches):
        store.apply(batch, position)
        for key, value in batch.items():
            if value is None:
                model.pop(key, None)
            else:
                model[key] = value
    assert list(store.scan(start, end)) == sorted((k, v) for k, v in model.items() if start <= k < end)
    assert all(store.get(k) == v for k, v in model.items())
    keys = [start, *model, end]
    assert store.get_many(keys) == [model.get(key) for key in keys]
