"""The store on disk: what it is after a stop, a kill, a damage, a full disk, and how much memory it takes."""

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
from tests.unit.rocks_writer import batch, contents

ROOT = Path(__file__).resolve().parents[2]


def opened(folder: Path) -> RocksDBStore:
    return RocksDBStoreFactory(folder, cache_mb=8)(0)


def filled(folder: Path) -> Path:
    """The folder of partition 0, closed, with a thousand keys in several blocks."""
    store = opened(folder)
    store.apply({b"%06d" % n: os.urandom(100) for n in range(1_000)}, 77)
    store.close()
    return folder / "0"


def test_a_closed_store_is_opened_as_it_was_left(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.apply({b"a": b"1", b"b": b"2"}, 10)
    store.apply({b"b": None, b"c": b"3"}, 20)
    store.close()
    store = opened(tmp_path)
    assert store.changelog_position() == 20
    assert list(store.scan(b"", b"\xff")) == [(b"a", b"1"), (b"c", b"3")]
    store.close()


def test_each_partition_has_a_store_of_its_own(tmp_path: Path) -> None:
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
def test_a_damaged_store_opens_empty_and_says_so(
    tmp_path: Path, pattern: str, damage: Callable[[Path], None]
) -> None:
    folder = filled(tmp_path)
    for file in folder.glob(pattern):
        damage(file)
    (folder / "left-over").write_text("of the damaged one")
    with capture_logs() as logs:
        store = opened(tmp_path)
    assert [entry["log_level"] for entry in logs if "damaged" in entry["event"]] == ["warning"]
    assert not (folder / "left-over").exists()
    assert (store.changelog_position(), list(store.scan(b"", b"\xff"))) == (None, [])
    store.apply({b"a": b"1"}, 3)
    store.close()
    store = opened(tmp_path)
    assert (store.changelog_position(), store.get(b"a")) == (3, b"1")
    store.close()


def test_a_file_in_the_place_of_the_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "0").write_text("?")
    store = opened(tmp_path)
    assert store.changelog_position() is None
    store.close()


@pytest.mark.parametrize("read", ["get", "get_many", "scan"])
def test_damage_found_while_reading_is_never_taken_for_an_absent_key(tmp_path: Path, read: str) -> None:
    folder = filled(tmp_path)
    for file in folder.glob("*.sst"):
        scribble(file)
    store = opened(tmp_path)
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
    store = opened(tmp_path)
    assert store.changelog_position() is None
    store.close()


def test_a_caller_s_mistake_is_no_damage(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.apply({b"a": b"1"}, 3)
    with pytest.raises(KeyError, match="bytes"):
        store.get("a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bytes"):
        store.apply({b"a": "1"}, 4)  # type: ignore[dict-item]
    store.close()
    store = opened(tmp_path)
    assert (store.changelog_position(), store.get(b"a")) == (3, b"1")
    store.close()


def test_a_store_that_another_has_open_is_left_alone(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.apply({b"a": b"1"}, 10)
    with pytest.raises(StoreFailed, match="Another process has it open"):
        opened(tmp_path)
    assert (store.changelog_position(), store.get(b"a")) == (10, b"1")
    store.close()


# --- kills and full disks, in a process of its own -----------------------------------------------------------------


def writer(folder: Path, *told: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.unit.rocks_writer", str(folder), *told],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_killed_in_the_middle_of_writing_contents_and_position_agree(tmp_path: Path) -> None:
    """Three kills, one after another on the same folder; what each leaves is a prefix of all batches."""
    before = 0
    for _ in range(3):
        known = tables(tmp_path)
        child = writer(tmp_path)
        assert child.stdout is not None
        for line in child.stdout:
            # Two new tables: the first is in use by the time that there is a second.
            if int(line) % 50 == 0 and len(tables(tmp_path) - known) >= 2:
                break
        child.send_signal(signal.SIGKILL)
        last = int((child.stdout.read().split() or [line])[-1])
        child.stdout.close()
        assert child.wait(10) == -signal.SIGKILL
        store = opened(tmp_path)
        position = store.changelog_position()
        assert position is not None
        assert before < position <= last + 2  # the last line may not have been written
        assert dict(store.scan(b"", b"\xff")) == contents(position)
        store.close()
        before = position


def tables(folder: Path) -> set[str]:
    return {file.name for file in folder.rglob("*.sst")}


def test_where_the_disk_is_full_it_says_so_and_keeps_what_it_has(tmp_path: Path) -> None:
    """The child may make no file larger than 32 KiB, writes until that fails, and opens the store again."""
    child = writer(tmp_path, "full disk")
    out, _ = child.communicate(timeout=30)
    told = json.loads(out.splitlines()[-1])  # after what it logged
    assert "File too large" in told["failed"]
    assert not told["damaged"]
    store = opened(tmp_path)
    position = store.changelog_position()
    assert position == told["position"] > 0
    assert dict(store.scan(b"", b"\xff")) == contents(position)
    store.apply(batch(position), position + 1)
    store.close()


# --- order, memory, what is left over ------------------------------------------------------------------------------


def test_what_is_due_first_is_scanned_first_wherever_it_lies(tmp_path: Path) -> None:
    """Part on disk, part in the buffer, part in the slice; deleted ones in all of them."""
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


def test_memory_stays_within_its_bound_whatever_the_size_of_the_state(tmp_path: Path) -> None:
    stores = RocksDBStoreFactory(tmp_path, cache_mb=8)
    opened_stores = [stores(n) for n in range(3)]
    most = 0
    for n in range(60):
        store = opened_stores[n % 3]
        store.apply({b"%d-%d" % (n, m): os.urandom(1_000) for m in range(1_500)}, n)
        assert (store.get(b"%d-%d" % (n - 3, n)) is not None) == (n >= 3)
        memory = stores._memory
        most = max(most, memory.cache.get_usage())
        assert memory.buffers.get_usage() < 2 * MIN_BUFFER_BYTES + 1_500 * 1_100
    assert most < (8 << 20) * 1.1
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.sst")) > 48 << 20
    for store in opened_stores:
        store.close()


def test_stores_of_partitions_that_others_took_over_are_removed_after_a_day(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        shutil.copytree(filled(tmp_path / "made"), tmp_path / "state" / str(number))
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
