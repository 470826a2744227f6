"""I1-I4 when stores are deleted, damaged or restored from a backup, or their disk is full.

A store is a copy of the changelog, so damage to it must never reach the outputs. Negative controls:
`test_processor_controls`.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from subprocess import Popen

import pytest

from tests.fault.fault_settings import select_variants
from tests.fault.full_disks import can_mount, fill_disk, small_disk
from tests.fault.processor_rig import ProcessorGroup
from tests.fault.workload import history

Damage = Callable[[Path, random.Random], None]
Full = Callable[[ProcessorGroup, Popen[bytes]], AbstractContextManager[None]]
MAX_FILE_BYTES = 16 * 1024
PADDING = 30_000
"""Bytes of text in each answer, so that one response's state is larger than `MAX_FILE_BYTES`, even compressed."""


def delete_tree(tree: Path) -> None:
    """Delete a tree that a running processor may be writing to.

    The rename takes it out of the processor's reach at once. RocksDB's background compaction would otherwise
    remove files between the listing and the deletion, and `rmtree` fails on those.
    """
    shutil.rmtree(tree.rename(tree.with_name(f"{tree.name}.deleted")))


def delete_all(state: Path, _dice: random.Random) -> None:
    delete_tree(state)


def delete_one_partition(state: Path, rng: random.Random) -> None:
    delete_tree(rng.choice(sorted(state.iterdir())))


def overwrite_tables(state: Path, rng: random.Random) -> None:
    for table in sorted(state.rglob("*.sst")):
        with suppress(FileNotFoundError), table.open("r+b") as file:  # a compaction may have removed it
            at = rng.randrange(file.seek(0, os.SEEK_END) + 1)  # a kill can leave empty tables
            size = min(64, file.tell() - at)
            file.seek(at)
            file.write(rng.randbytes(size))


def truncate_manifests(state: Path, rng: random.Random) -> None:
    for manifest in sorted(state.rglob("MANIFEST-*")):
        os.truncate(manifest, rng.randrange(manifest.stat().st_size + 1))


def delete_tables(state: Path, rng: random.Random) -> None:
    for table in sorted(state.rglob("*.sst")):
        if rng.random() < 0.7:
            table.unlink(missing_ok=True)  # a compaction may have removed it


DAMAGES: tuple[Damage, ...] = (
    overwrite_tables, delete_all, delete_one_partition, truncate_manifests, delete_tables,
)  # fmt: skip


@pytest.mark.parametrize("damage", select_variants(DAMAGES))
def test_store_damaged_between_starts_is_rebuilt(
    damage: Damage, rare_seed: int, workers: ProcessorGroup
) -> None:
    rng = random.Random(rare_seed)
    first, second = (history(rare_seed * 2 + n, 25, name=f"part{n}") for n in (0, 1))
    workers.load.send(first)
    workers.load.flush()
    if rng.random() < 0.5:
        workers.run_to_end(age_ms=300)
    else:
        workers.run_until_killed(kill=["after_store", 3], age_ms=300, slice_records=20)
    damage(workers.state(), rng)
    workers.load.send(second)
    workers.load.flush()
    workers.run_to_end(age_ms=300)
    assert workers.violations() == []


@pytest.mark.parametrize("damage", select_variants((overwrite_tables, delete_all, delete_tables)))
def test_store_damaged_under_a_running_processor_is_rebuilt(
    damage: Damage, rare_seed: int, workers: ProcessorGroup
) -> None:
    first, second = (history(rare_seed * 2 + n, 25, name=f"part{n}") for n in (0, 1))
    workers.load.send(first)
    workers.load.flush()
    running = workers.start(age_ms=300)
    workers.until_consumed(40, running)
    damage(workers.state(), random.Random(rare_seed))
    # Repeated records of the first responses make the processor read the damaged state.
    workers.load.send(first[::3])
    workers.load.send(second)
    workers.load.flush()
    workers.until_consumed(40, running)
    workers.stop(running)
    assert workers.violations() == []


def test_store_restored_from_a_backup_catches_up(rare_seed: int, workers: ProcessorGroup) -> None:
    """Its stored position says what to read from the changelog."""
    parts = [history(rare_seed * 3 + n, 20, name=f"part{n}") for n in range(3)]
    before = workers.folder / "before"
    for n, part in enumerate(parts):
        workers.load.send(part)
        workers.load.flush()
        if n == 2:
            shutil.rmtree(workers.state())
            shutil.copytree(before, workers.state())
        workers.run_to_end(age_ms=300)
        if n == 0:
            shutil.copytree(workers.state(), before)
    assert workers.violations() == []


# --- a full disk --------------------------------------------------------------------------------------------------


@contextmanager
def file_limit(workers: ProcessorGroup, child: Popen[bytes]) -> Iterator[None]:
    """Let no file of this process grow, until the block ends."""
    os.kill(child.pid, signal.SIGUSR1)
    yield
    os.kill(child.pid, signal.SIGUSR2)


def full_file_system(workers: ProcessorGroup, _child: Popen[bytes]) -> AbstractContextManager[None]:
    """Fill the file system of the stores, until the block ends."""
    return fill_disk(workers.state().parent / "ballast")


def run_through_a_full_disk(workers: ProcessorGroup, seed: int, full: Full, error: str) -> None:
    """Fill the disk under a running processor until it logs `error`, then free it again."""
    workers.load.send(history(seed, 15, name="first"))
    workers.load.flush()
    running = workers.start(age_ms=300, max_file_bytes=MAX_FILE_BYTES)
    workers.until_consumed(40, running)
    with full(workers, running):
        workers.load.send(history(seed + 100, 20, name="second", padding=PADDING))
        workers.load.flush()
        workers.until(lambda: error in workers.log_of(running), f"the store reports: {error}")
        threading.Event().wait(1.0)  # it retries meanwhile
    workers.load.send(history(seed + 200, 15, name="third"))
    workers.load.flush()
    workers.until_consumed(60, running)
    workers.stop(running)
    assert workers.violations() == []


def test_processor_waits_for_a_disk_that_refuses_writes(rare_seed: int, workers: ProcessorGroup) -> None:
    """The same process continues once there is disk space."""
    run_through_a_full_disk(workers, rare_seed, file_limit, "File too large")


if can_mount():

    def test_processor_waits_for_a_full_file_system(rare_seed: int, workers: ProcessorGroup) -> None:
        """Mounting a small file system needs root."""
        with small_disk(workers.state().parent, 8):
            try:
                run_through_a_full_disk(workers, rare_seed, full_file_system, "No space left")
            finally:
                workers.end()
