"""I1-I4 while processes join, leave and freeze under load: each partition has one owner, and no former owner writes.

`SIGSTOP` makes a zombie: a process that its group expels while it is frozen, and that then continues where it was.
Negative controls: `test_processor_controls`.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fault.fault_settings import select_variants
from tests.fault.processor_rig import ProcessorGroup, ProcessorRig, is_frozen, processor_group, under_load
from tests.fault.workload import history

EXPELLED_AFTER_S = 2.5
"""More than one session timeout, less than two."""


@pytest.fixture
def crowd(kafka: str, fresh: str, tmp_path: Path, record_property: Any) -> Iterator[ProcessorGroup]:
    """A group with three partitions, for three processes."""
    with processor_group(
        ProcessorRig(kafka, fresh, partitions=3).create(), tmp_path, record_property
    ) as group:
        yield group


def test_three_processes_join_leave_and_die_under_load(seed: int, crowd: ProcessorGroup) -> None:
    """The processes join one by one. One leaves gracefully, one is killed, and both return."""
    rng, pause = random.Random(seed), threading.Event()
    with under_load(crowd, seed):
        running = {name: crowd.start(name, age_ms=300) for name in ("one",)}
        for name in ("two", "three"):
            pause.wait(rng.uniform(0.2, 1.5))
            running[name] = crowd.start(name, age_ms=300)
        crowd.until(lambda: crowd.rig.changelog_end() > 0, "the processors work")
        pause.wait(rng.uniform(0.2, 1.5))
        leaving, dying = rng.sample(sorted(running), 2)
        for name in rng.sample((leaving, dying), 2):
            if name == leaving:
                crowd.stop(running[name])
            else:
                crowd.kill(running[name])
            pause.wait(rng.uniform(0, 1.0))
        for name in (leaving, dying):
            running[name] = crowd.start(name, age_ms=300)
            pause.wait(rng.uniform(0, 1.0))
    crowd.until_consumed(60, *running.values())
    for child in running.values():
        crowd.stop(child)
    assert crowd.violations() == []


@pytest.mark.parametrize("phase", select_variants(["after_produce", "before_transaction", "after_commit"]))
def test_zombie_writes_nothing_after_it_was_expelled(
    phase: str, rare_seed: int, workers: ProcessorGroup
) -> None:
    """It freezes in this phase until another process has taken over, and then continues."""
    rng = random.Random(f"{phase}{rare_seed}")
    workers.load.send(history(rare_seed, 40))
    workers.load.flush()
    zombie = workers.start("one", freeze=[phase, rng.randint(1, 3)], slice_records=20)
    workers.until(lambda: is_frozen(zombie), "it is frozen")
    second = workers.start("two", slice_records=20)
    threading.Event().wait(EXPELLED_AFTER_S)
    workers.until_consumed(40, second)
    workers.load.send(history(rare_seed + 500, 20, name="later"))
    workers.load.flush()
    os.kill(zombie.pid, signal.SIGCONT)
    workers.load.send(history(rare_seed + 900, 20, name="last"))
    workers.load.flush()
    workers.until_consumed(40, second)
    workers.until(lambda: has_noticed(workers, zombie), "it notices that it was expelled")
    for child in (zombie, second):
        if child.poll() is None:
            workers.stop(child)
    assert workers.violations() == []


def has_noticed(workers: ProcessorGroup, zombie: Any) -> bool:
    """Return whether the zombie, still alive, restarted its clients or gave up its partitions."""
    assert zombie.poll() is None
    return any(text in workers.log_of(zombie) for text in ("restarting clients", "unassigned"))
