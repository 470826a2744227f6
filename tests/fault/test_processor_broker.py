"""I1-I4 when the broker is killed under load: the processors wait for it and continue without help.

Negative controls: `test_processor_controls`.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fault.broker import Broker, own_broker
from tests.fault.fault_settings import SEEDS
from tests.fault.processor_rig import ProcessorGroup, ProcessorRig, processor_group, under_load

KILLS = 2 if SEEDS > 1 else 1
ATTEMPTS = 3


def kill_under_load(broker: Broker, workers: ProcessorGroup, seed: int) -> None:
    """Kill and restart the broker while two processes work, until all is consumed or the broker broke its promise.

    Both processes must survive it.
    """
    rng, pause = random.Random(seed), threading.Event()
    running = {name: workers.start(name, age_ms=300) for name in ("one", "two")}
    with under_load(workers, seed):
        workers.until(lambda: workers.rig.changelog_end() > 0, "the processors work")
        for _ in range(KILLS):
            pause.wait(rng.uniform(1.0, 4.0))
            broker.kill()
            workers.kills += 1
            # The broker returns at once, or only after every open transaction has timed out.
            pause.wait(rng.choice((rng.uniform(0.1, 2.0), rng.uniform(5.0, 7.0))))
            broker.start()

    def finished() -> bool:
        for name, child in running.items():
            assert child.poll() is None, f"{name} ended: {workers.log_of(child)[-2_000:]}"
        return broker.lost_markers() or (workers.rig.consumed() and workers.rig.has_no_open_transaction())

    workers.until(finished, "all inputs are consumed", 60)
    if not broker.lost_markers():
        for child in running.values():
            workers.stop(child)


@pytest.mark.timeout(300)
def test_broker_killed_under_load_loses_and_repeats_nothing(
    rare_seed: int, fresh: str, tmp_path: Path, record_property: Callable[[str, int], None]
) -> None:
    """Runs in which the broker broke its own promise are counted as unjudged and tried again."""
    for attempt in range(ATTEMPTS):
        folder = tmp_path / str(attempt)
        with own_broker(folder) as broker:
            rig = ProcessorRig(broker.address, fresh).create()
            with processor_group(rig, folder, record_property) as workers:
                kill_under_load(broker, workers, rare_seed + 100 * attempt)
                if not broker.lost_markers():
                    assert workers.violations() == []
                    return
        record_property("unjudged", 1)
    pytest.fail(f"the broker lost the ends of decided transactions in each of {ATTEMPTS} runs")
