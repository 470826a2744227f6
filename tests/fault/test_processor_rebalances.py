"""I1-I4 while processes come, go and stand still under load: each partition has one owner, and no former one writes.

`SIGSTOP` makes a zombie: a process that was given up by its group while it stood still, and that goes on where it was.
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

from tests.fault.fault_settings import varieties
from tests.fault.processor_rig import ProcessorRig, Processors, is_stopped, processors, under_load
from tests.fault.workload import history

GROUP_GIVES_UP_S = 2.5
"""More than a session, less than two."""


@pytest.fixture
def crowd(kafka: str, fresh: str, tmp_path: Path, record_property: Any) -> Iterator[Processors]:
    """For three processes to share."""
    with processors(ProcessorRig(kafka, fresh, partitions=3).create(), tmp_path, record_property) as started:
        yield started


def test_three_processes_join_leave_and_die_under_load(seed: int, crowd: Processors) -> None:
    """One joins after another, one leaves in order, one is killed, and both come back."""
    dice, pause = random.Random(seed), threading.Event()
    with under_load(crowd, seed):
        running = {name: crowd.start(name, age_ms=300) for name in ("one",)}
        for name in ("two", "three"):
            pause.wait(dice.uniform(0.2, 1.5))
            running[name] = crowd.start(name, age_ms=300)
        crowd.until(lambda: crowd.rig.written() > 0, "work is done")
        pause.wait(dice.uniform(0.2, 1.5))
        leaves, dies = dice.sample(sorted(running), 2)
        for name in dice.sample((leaves, dies), 2):
            if name == leaves:
                crowd.stop(running[name])
            else:
                crowd.kill(running[name])
            pause.wait(dice.uniform(0, 1.0))
        for name in (leaves, dies):
            running[name] = crowd.start(name, age_ms=300)
            pause.wait(dice.uniform(0, 1.0))
    crowd.until_consumed(60, *running.values())
    for child in running.values():
        crowd.stop(child)
    assert crowd.complaints() == []


@pytest.mark.parametrize("phase", varieties(["after_produce", "before_transaction", "after_commit"]))
def test_a_zombie_writes_nothing_once_it_was_given_up(
    phase: str, rare_seed: int, workers: Processors
) -> None:
    """It stands still in this phase until another has taken over, and then goes on."""
    dice = random.Random(f"{phase}{rare_seed}")
    workers.load.send(history(rare_seed, 40))
    workers.load.settled()
    zombie = workers.start("one", stand=[phase, dice.randint(1, 3)], slice_records=20)
    workers.until(lambda: is_stopped(zombie), "it stands still")
    second = workers.start("two", slice_records=20)
    threading.Event().wait(GROUP_GIVES_UP_S)
    workers.until_consumed(40, second)
    workers.load.send(history(rare_seed + 500, 20, name="later"))
    workers.load.settled()
    os.kill(zombie.pid, signal.SIGCONT)
    workers.load.send(history(rare_seed + 900, 20, name="last"))
    workers.load.settled()
    workers.until_consumed(40, second)
    workers.until(lambda: has_noticed(workers, zombie), "it learns that it was given up")
    for child in (zombie, second):
        if child.poll() is None:
            workers.stop(child)
    assert workers.complaints() == []


def has_noticed(workers: Processors, zombie: Any) -> bool:
    """It begins anew, as the broker had aborted what it had open, or the group had given it up; and it lives."""
    assert zombie.poll() is None
    return any(word in workers.log_of(zombie) for word in ("starting anew", "unassigned"))
