"""I1-I4 when the broker itself is killed -9 under load: the processors wait for it and go on by themselves."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fault.broker import Broker, own_broker
from tests.fault.fault_settings import SEEDS
from tests.fault.processor_rig import ProcessorRig, Processors, processors, under_load

KILLS = 2 if SEEDS > 1 else 1
ATTEMPTS = 3


def killed_under_load(broker: Broker, workers: Processors, seed: int) -> None:
    """Two processes at work, and a broker that goes and comes; until all is consumed, or the broker at fault. Both
    processes live through it.
    """
    dice, pause = random.Random(seed), threading.Event()
    running = {name: workers.start(name, age_ms=300) for name in ("one", "two")}
    with under_load(workers, seed):
        workers.until(lambda: workers.rig.written() > 0, "work is done")
        for _ in range(KILLS):
            pause.wait(dice.uniform(1.0, 4.0))
            broker.kill()
            workers.kills += 1
            # Back at once, or only after each open transaction's time ran out.
            pause.wait(dice.choice((dice.uniform(0.1, 2.0), dice.uniform(5.0, 7.0))))
            broker.start()

    def over() -> bool:
        for name, child in running.items():
            assert child.poll() is None, f"{name} ended by itself: {workers.log_of(child)[-2_000:]}"
        return broker.lost_markers() or (workers.rig.consumed() and workers.rig.decided())

    workers.until(over, "all is consumed", 60)
    if not broker.lost_markers():
        for child in running.values():
            workers.stop(child)


@pytest.mark.timeout(300)
def test_a_broker_killed_under_load_loses_and_doubles_nothing(
    rare_seed: int, fresh: str, tmp_path: Path, record_property: Callable[[str, int], None]
) -> None:
    """Runs in which the broker broke its own promise are told at the end, and tried again."""
    for attempt in range(ATTEMPTS):
        folder = tmp_path / str(attempt)
        with own_broker(folder) as broker:
            rig = ProcessorRig(broker.address, fresh).create()
            with processors(rig, folder, record_property) as workers:
                killed_under_load(broker, workers, rare_seed + 100 * attempt)
                if not broker.lost_markers():
                    assert workers.complaints() == []
                    return
        record_property("unjudged", 1)
    pytest.fail(f"the broker lost the ends of decided transactions in each of {ATTEMPTS} runs")
