"""I1-I4: whatever a killed processor was doing, every acknowledged event has one outcome and counts once.

The real step on the real engine, in processes that kill themselves in a named phase. The oracle reads all that is
committed, and asks the core what should be (`oracle`).
"""

from __future__ import annotations

import random
import shutil
import time
from typing import Any

import pytest

from tests.fault.fault_settings import SEEDS
from tests.fault.processor_rig import SHIPPED, Processors
from tests.fault.workload import history

PHASES = ("before_transaction", "after_produce", "after_commit", "after_store", "during_restore")
LIVES = 2 if SEEDS > 1 else 1


@pytest.mark.parametrize("phase", PHASES)
def test_killed_in_this_phase_nothing_is_lost_and_nothing_counts_twice(
    phase: str, seed: int, workers: Processors
) -> None:
    """Twice in this phase (once in the short form), with or without its store; then one more life, to the end."""
    dice = random.Random(f"{phase}{seed}")
    parts = [history(seed * 10 + n, 20, name=f"part{n}") for n in range(LIVES + 1)]
    cuts: dict[str, Any] = {"examples": dice.choice((2, 8)), "age_ms": dice.choice((200, 5_000))}
    for part in parts[:-1]:
        workers.load.send(part)
        workers.load.settled()
        if phase == "during_restore" or dice.random() < 0.3:
            shutil.rmtree(workers.state(), ignore_errors=True)
        times = 1 if phase == "during_restore" else dice.randint(1, 3)
        workers.killed(kill=[phase, times], slice_records=dice.choice((10, 20)), **cuts)
    workers.load.send(parts[-1])
    workers.load.settled()
    workers.finish(**cuts)
    assert workers.complaints() == []


def test_a_successor_takes_over_with_the_shipped_timeouts(workers: Processors) -> None:
    """Nobody fences the dead one's open transaction: its time and the broker's scan end it."""
    workers.load.send(history(1, 60))
    workers.load.settled()
    workers.killed(kill=["after_produce", 2], timeouts=SHIPPED)
    begun = time.monotonic()
    second = workers.start("two", timeouts=SHIPPED)
    workers.until_consumed(40, second)
    took = time.monotonic() - begun
    workers.stop(second)
    assert workers.complaints() == []
    assert took < 20


def test_a_processor_without_faults_is_not_complained_of(rare_seed: int, workers: Processors) -> None:
    """The oracle over the same log, with nothing done to the processor."""
    workers.load.send(history(rare_seed))
    workers.load.settled()
    workers.finish()
    assert workers.complaints() == []
