"""Tests of the store on disk: after a stop, a kill, damage, or a full disk; and its memory."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from shared.stream.rocksdb_store import (
    MIN_BUFFER_BYTES,
    REMOVE_UNUSED_AFTER_S,
    RocksDBStore,
    RocksDBStoreFactory,
)
from shared.stream.state_store import StoreFailed
from shared.stream.write_buffer import WriteBuffer
from tests.unit.rocksdb_writer import batch, contents

ROOT = Path(__file__).resolve().parents[2]


def open_store(folder: Path) -> RocksDBStore:
    return RocksDBStoreFactory(folder, cache_mb=8)(0)


def filled_store(folder: Path) -> Path:
    """Return the folder of a closed store of partition 0, with a thousand keys in several blocks."""
    store = open_store(folder)
    store.apply({b"%06d" % n: os.urandom(100) for n in range(1_000)}, 77)
    store.close()
    return folder / "0"


def test_closed_store_reopens_with_its_contents(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.apply({b"a": b"1", b"b": b"2"}, 10)
    store.apply({b"b": None, b"c": b"3"}, 20)
    store.close()
    store = open_store(tmp_path)
    assert store.changelog_position() == 20
    assert list(store.scan(b"", b"\xff")) == [(b"a", b"1"), (b"c", b"3")]
    store.close()


def test_each_partition_has_its_own_store(tmp_path: Path) -> None:
    stores = RocksDBStoreFactory(tmp_path, cache_mb=8)
    one, two = stores(1), stores(2)
    one.apply({b"a": b"1"}, 5)
    assert (two.changelog_position(), two.get(b"a")) == (None, None)
    one.close()
    two.close()


# --- damage ------------------------------------------------------------------------------------------------------


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def scribble(file: Path) -> None:
    with file.open("r+b") as opened_file:
        opened_file.seek(file.stat().st_size // 2)
        opened_file.write(bytes(range(200)))


def junk(file: Path) -> None:
    file.write_bytes(b"\x00junk")


def lose(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [
        ("*.sst", cut),
        ("*.sst", lose),
        ("CURRENT", junk),
        ("CURRENT", lose),
        ("MANIFEST*", junk),
        ("MANIFEST*", lose),
    ],
)
def test_damaged_store_opens_empty_with_a_warning(
    tmp_path: Path, pattern: str, damage: Callable[[Path], None]
) -> None:
    folder = filled_store(tmp_path)
    for file in folder.glob(pattern):
        damage(file)
    (folder / "left-over").write_text("from the damaged store")
    with capture_logs() as logs:
        store = open_store(tmp_path)
    assert [entry["log_level"] for entry in logs if "damaged" in entry["event"]] == ["warning"]
    assert not (folder / "left-over").exists()
    assert (store.changelog_position(), list(store.scan(b"", b"\xff"))) == (None, [])
    store.apply({b"a": b"1"}, 3)
    store.close()
    store = open_store(tmp_path)
    assert (store.changelog_position(), store.get(b"a")) == (3, b"1")
    store.close()


def test_file_in_place_of_the_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "0").write_text("?")
    store = open_store(tmp_path)
    assert store.changelog_position() is None
    store.close()


@pytest.mark.parametrize("read", ["get", "get_many", "scan"])
def test_damage_found_by_a_read_never_looks_like_an_absent_key(tmp_path: Path, read: str) -> None:
    folder = filled_store(tmp_path)
    for file in folder.glob("*.sst"):
        scribble(file)
    store = open_store(tmp_path)
    assert store.changelog_position() == 77
    with capture_logs() as logs, pytest.raises(StoreFailed, match="could not be read"):  # noqa: PT012
        if read == "scan":
            list(store.scan(b"", b"\xff"))
        if read == "get_many":
            assert None not in store.get_many([b"%06d" % n for n in range(1_000)])
        for n in range(1_000):
            assert store.get(b"%06d" % n) is not None
    assert ["damaged" in entry["event"] for entry in logs] == [True]
    store.close()
    assert not folder.exists()
    store = open_store(tmp_path)
    assert store.changelog_position() is None
    store.close()


def test_wrong_argument_is_not_taken_for_damage(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.apply({b"a": b"1"}, 3)
    with pytest.raises(KeyError, match="bytes"):
        store.get("a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bytes"):
        store.apply({b"a": "1"}, 4)  # type: ignore[dict-item]
    store.close()
    store = open_store(tmp_path)
    assert (store.changelog_position(), store.get(b"a")) == (3, b"1")
    store.close()


def test_store_open_elsewhere_is_refused_and_unharmed(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.apply({b"a": b"1"}, 10)
    with pytest.raises(StoreFailed, match="Another process has it open"):
        open_store(tmp_path)
    assert (store.changelog_position(), store.get(b"a")) == (10, b"1")
    store.close()


# --- kills and full disks, in a separate process -------------------------------------------------------------------


def start_writer(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.unit.rocksdb_writer", str(folder), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_contents_and_position_agree_after_a_kill(tmp_path: Path) -> None:
    """After each of three kills on the same folder, the store holds a prefix of all batches."""
    before = 0
    for _ in range(3):
        before_start = tables(tmp_path)
        child = start_writer(tmp_path)
        assert child.stdout is not None
        for line in child.stdout:
            # Once a second table appears, the first one is in use.
            if int(line) % 50 == 0 and len(tables(tmp_path) - before_start) >= 2:
                break
        child.send_signal(signal.SIGKILL)
        last = int((child.stdout.read().split() or [line])[-1])
        child.stdout.close()
        assert child.wait(10) == -signal.SIGKILL
        store = open_store(tmp_path)
        position = store.changelog_position()
        assert position is not None
        assert before < position <= last + 2  # the last batch may not have been printed
        assert dict(store.scan(b"", b"\xff")) == contents(position)
        store.close()
        before = position


def tables(folder: Path) -> set[str]:
    return {file.name for file in folder.rglob("*.sst")}


def test_full_disk_is_reported_and_keeps_the_contents(tmp_path: Path) -> None:
    """The child may write no file larger than 32 KiB. It writes until that fails, and reopens the store."""
    child = start_writer(tmp_path, "full disk")
    out, _ = child.communicate(timeout=30)
    report = json.loads(out.splitlines()[-1])  # after its log lines
    assert "File too large" in report["failed"]
    assert not report["damaged"]
    store = open_store(tmp_path)
    position = store.changelog_position()
    assert position == report["position"] > 0
    assert dict(store.scan(b"", b"\xff")) == contents(position)
    store.apply(batch(position), position + 1)
    store.close()


# --- order, memory, unused stores ----------------------------------------------------------------------------------


def test_scan_is_ordered_across_disk_and_buffers(tmp_path: Path) -> None:
    """Some keys are on disk, some in the buffer, some in the slice; some were deleted in each of them."""
    store = RocksDBStoreFactory(tmp_path, cache_mb=8, flush_s=0)(0)

    def due(ms: int) -> bytes:
        return b"due:" + ms.to_bytes(8, "big")

    store.apply({due(ms): b"%d" % ms for ms in (300, 70_000, 5, 256)}, 1)
    store.apply({due(ms): b"%d" % ms for ms in (255, 1_000_000)} | {due(300): None}, 2)
    state = WriteBuffer(store, 1_000)
    state.put(due(65_536), b"65536")
    state.delete(due(255))
    assert [value for _, value in state.scan(due(0), due(100_000))] == [b"5", b"256", b"65536", b"70000"]
    store.close()


def test_memory_stays_bounded_for_any_state_size(tmp_path: Path) -> None:
    stores = RocksDBStoreFactory(tmp_path, cache_mb=8)
    opened_stores = [stores(n) for n in range(3)]
    peak = 0
    for n in range(60):
        store = opened_stores[n % 3]
        store.apply({b"%d-%d" % (n, m): os.urandom(1_000) for m in range(1_500)}, n)
        assert (store.get(b"%d-%d" % (n - 3, n)) is not None) == (n >= 3)
        budget = stores._budget
        peak = max(peak, budget.cache.get_usage())
        assert budget.buffers.get_usage() < 2 * MIN_BUFFER_BYTES + 1_500 * 1_100
    assert peak < (8 << 20) * 1.1
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.sst")) > 48 << 20
    for store in opened_stores:
        store.close()


@pytest.mark.parametrize("partitions", [6, 24, 256])
def test_many_small_stores_do_not_flush_at_every_write(tmp_path: Path, partitions: int) -> None:
    """Empty buffers of many stores once filled the shared limit; each write then made a file, 100 times slower."""
    factory = RocksDBStoreFactory(tmp_path, cache_mb=8, flush_s=3600, partitions=partitions)
    stores = [factory(number) for number in range(partitions)]
    for n in range(10):
        for store in stores:
            store.apply({b"%d" % m: bytes(300) for m in range(n, n + 20)}, n)
    assert list(tmp_path.rglob("*.sst")) == []
    for store in stores:
        store.close()


def test_store_unused_for_a_day_is_removed(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        shutil.copytree(filled_store(tmp_path / "made"), tmp_path / "state" / str(number))
    old = time.time() - REMOVE_UNUSED_AFTER_S - 60
    stores = RocksDBStoreFactory(tmp_path / "state", cache_mb=8, flush_s=0)
    store = stores(3)
    for number in (1, 3):
        os.utime(tmp_path / "state" / str(number), (old, old))
    (tmp_path / "state" / "notes").mkdir()
    os.utime(tmp_path / "state" / "notes", (old, old))
    store.apply({b"a": b"1"}, 100)
    assert sorted(folder.name for folder in (tmp_path / "state").iterdir()) == ["2", "3", "notes"]
    store.close()
