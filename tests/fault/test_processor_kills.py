"""I1-I4 when a processor is killed: every acknowledged event has one outcome and counts once.

The real step runs on the real engine in processes that kill themselves in a chosen phase. The oracle compares all
committed records with what the core makes of the inputs. Negative controls: `test_processor_controls`.
"""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fault.fault_settings import SEEDS
from tests.fault.processor_rig import (
    SHIPPED_TIMEOUTS,
    ProcessorGroup,
    ProcessorRig,
    processor_group,
    under_load,
)
from tests.fault.workload import history

PHASES = ("before_transaction", "after_produce", "after_commit", "after_store", "during_restore")
KILLS = 2 if SEEDS > 1 else 1


@pytest.mark.parametrize("phase", PHASES)
def test_kill_in_any_phase_loses_and_repeats_nothing(phase: str, seed: int, workers: ProcessorGroup) -> None:
    """The processor is killed once or twice, sometimes loses its store, and then runs to the end."""
    rng = random.Random(f"{phase}{seed}")
    parts = [history(seed * 10 + n, 20, name=f"part{n}") for n in range(KILLS + 1)]
    cuts: dict[str, Any] = {"examples": rng.choice((2, 8)), "age_ms": rng.choice((200, 5_000))}
    for part in parts[:-1]:
        workers.load.send(part)
        workers.load.flush()
        if phase == "during_restore" or rng.random() < 0.3:
            shutil.rmtree(workers.state(), ignore_errors=True)
        times = 1 if phase == "during_restore" else rng.randint(1, 3)
        workers.run_until_killed(kill=[phase, times], slice_records=rng.choice((10, 20)), **cuts)
    workers.load.send(parts[-1])
    workers.load.flush()
    workers.run_to_end(**cuts)
    assert workers.violations() == []


def test_successor_takes_over_with_the_shipped_timeouts(workers: ProcessorGroup) -> None:
    """Only its timeout ends the dead process's open transaction, because the successor has another identity."""
    workers.load.send(history(1, 60))
    workers.load.flush()
    workers.run_until_killed(kill=["after_produce", 2], timeouts=SHIPPED_TIMEOUTS)
    started = time.monotonic()
    second = workers.start("two", timeouts=SHIPPED_TIMEOUTS)
    workers.until_consumed(40, second)
    took = time.monotonic() - started
    workers.stop(second)
    assert workers.violations() == []
    assert took < 20


def test_kill_with_24_partitions_loses_and_repeats_nothing(
    kafka: str, fresh: str, tmp_path: Path, record_property: Any
) -> None:
    """The default number of partitions: one of two processes dies, and the other one takes over its half."""
    rig = ProcessorRig(kafka, fresh, partitions=24).create()
    with processor_group(rig, tmp_path, record_property) as group:
        first, second = group.start("one", age_ms=300), group.start("two", age_ms=300)
        with under_load(group, seed=24):
            group.until(lambda: rig.changelog_end() > 24, "the processors work")
            group.kill(first)
            group.until(lambda: rig.changelog_end() > 100, "the second process works")
        group.until_consumed(60, second)
        group.stop(second)
        assert group.violations() == []


def test_processor_without_faults_has_no_violations(rare_seed: int, workers: ProcessorGroup) -> None:
    """The oracle accepts the same workload if nothing is done to the processor."""
    workers.load.send(history(rare_seed))
    workers.load.flush()
    workers.run_to_end()
    assert workers.violations() == []
