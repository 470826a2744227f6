"""I1-I4 whatever becomes of the stores: deleted, damaged, put back from yesterday, or on a disk that is full.

They are copies of the changelog: nothing may rest on them, and what is wrong in one must never reach the outputs.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from subprocess import Popen

import pytest

from tests.fault.fault_settings import varieties
from tests.fault.full_disks import ballast, may_mount, small_disk
from tests.fault.processor_rig import Processors
from tests.fault.workload import history

Hurt = Callable[[Path, random.Random], None]
Full = Callable[[Processors, Popen[bytes]], AbstractContextManager[None]]
LARGEST_FILE = 128 * 1024
PADDING = 30_000
"""Of text in each answer, so that what a slice writes is larger than that."""


def deleted(state: Path, _dice: random.Random) -> None:
    shutil.rmtree(state)


def one_partition_deleted(state: Path, dice: random.Random) -> None:
    shutil.rmtree(dice.choice(sorted(state.iterdir())))


def tables_overwritten(state: Path, dice: random.Random) -> None:
    for table in sorted(state.rglob("*.sst")):
        content = bytearray(table.read_bytes())
        at = dice.randrange(len(content) + 1)  # a kill leaves tables that are empty yet
        content[at : at + 64] = dice.randbytes(len(content[at : at + 64]))
        table.write_bytes(content)


def manifest_cut(state: Path, dice: random.Random) -> None:
    for manifest in sorted(state.rglob("MANIFEST-*")):
        os.truncate(manifest, dice.randrange(manifest.stat().st_size + 1))


def tables_missing(state: Path, dice: random.Random) -> None:
    for table in sorted(state.rglob("*.sst")):
        if dice.random() < 0.7:
            table.unlink()


HURTS: tuple[Hurt, ...] = (tables_overwritten, deleted, one_partition_deleted, manifest_cut, tables_missing)


@pytest.mark.parametrize("hurt", varieties(HURTS))
def test_a_store_hurt_between_lives_is_rebuilt(hurt: Hurt, rare_seed: int, workers: Processors) -> None:
    dice = random.Random(rare_seed)
    first, second = (history(rare_seed * 2 + n, 25, name=f"part{n}") for n in (0, 1))
    workers.load.send(first)
    workers.load.settled()
    if dice.random() < 0.5:
        workers.finish(age_ms=300)
    else:
        workers.killed(kill=["after_store", 3], age_ms=300, slice_records=20)
    hurt(workers.state(), dice)
    workers.load.send(second)
    workers.load.settled()
    workers.finish(age_ms=300)
    assert workers.complaints() == []


@pytest.mark.parametrize("hurt", varieties((tables_overwritten, deleted, tables_missing)))
def test_a_store_hurt_under_a_running_processor_is_rebuilt(
    hurt: Hurt, rare_seed: int, workers: Processors
) -> None:
    first, second = (history(rare_seed * 2 + n, 25, name=f"part{n}") for n in (0, 1))
    workers.load.send(first)
    workers.load.settled()
    running = workers.start(age_ms=300)
    workers.until_consumed(40, running)
    hurt(workers.state(), random.Random(rare_seed))
    # What is said again of the first responses has them read from what was hurt.
    workers.load.send(first[::3])
    workers.load.send(second)
    workers.load.settled()
    workers.until_consumed(40, running)
    workers.stop(running)
    assert workers.complaints() == []


def test_a_store_put_back_from_before_reads_what_it_lacks(rare_seed: int, workers: Processors) -> None:
    """As a restored backup does; its position says what to read."""
    parts = [history(rare_seed * 3 + n, 20, name=f"part{n}") for n in range(3)]
    before = workers.folder / "before"
    for n, part in enumerate(parts):
        workers.load.send(part)
        workers.load.settled()
        if n == 2:
            shutil.rmtree(workers.state())
            shutil.copytree(before, workers.state())
        workers.finish(age_ms=300)
        if n == 0:
            shutil.copytree(workers.state(), before)
    assert workers.complaints() == []


# --- a full disk --------------------------------------------------------------------------------------------------


@contextmanager
def file_limit(workers: Processors, child: Popen[bytes]) -> Iterator[None]:
    """Full for this process: no file may grow on."""
    os.kill(child.pid, signal.SIGUSR1)
    yield
    os.kill(child.pid, signal.SIGUSR2)


def nothing_left(workers: Processors, _child: Popen[bytes]) -> AbstractContextManager[None]:
    """Full: not a byte is left."""
    return ballast(workers.state().parent / "ballast")


def through_a_full_disk(workers: Processors, seed: int, full: Full, sign: str) -> None:
    workers.load.send(history(seed, 15, name="first"))
    workers.load.settled()
    running = workers.start(age_ms=300, largest_file=LARGEST_FILE)
    workers.until_consumed(40, running)
    with full(workers, running):
        workers.load.send(history(seed + 100, 20, name="second", padding=PADDING))
        workers.load.settled()
        workers.until(lambda: sign in workers.log_of(running), f"the store meets: {sign}")
        threading.Event().wait(1.0)  # it tries again and again
    workers.load.send(history(seed + 200, 15, name="third"))
    workers.load.settled()
    workers.until_consumed(60, running)
    workers.stop(running)
    assert workers.complaints() == []


def test_a_disk_that_takes_no_more_is_waited_for(rare_seed: int, workers: Processors) -> None:
    """It goes on by itself once there is room, in the same process."""
    through_a_full_disk(workers, rare_seed, file_limit, "File too large")


if may_mount():

    def test_a_full_disk_is_waited_for(rare_seed: int, workers: Processors) -> None:
        """With a file system of its own, which root alone may have."""
        with small_disk(workers.state().parent, 8):
            try:
                through_a_full_disk(workers, rare_seed, nothing_left, "No space left")
            finally:
                workers.end()
