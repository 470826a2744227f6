"""I1-I4 when the broker itself is killed -9 under load: the processors wait for it and go on by themselves."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fault.broker import Broker, own_broker
from tests.fault.extent import SEEDS
from tests.fault.processor_rig import ProcessorRig, Processors, processors, under_load

KILLS = 2 if SEEDS > 1 else 1
DECIDED_S = 15.0
"""By then a transaction that the broker still knows of is decided, and the processors have gone on."""


def ended_hanging(broker: Broker, workers: Processors) -> int:
    """Waits until all is consumed. Transactions that the broker has lost track of are ended as an operator would."""
    ended, pause = 0, threading.Event()
    for _ in range(5):
        deadline = time.monotonic() + DECIDED_S
        while time.monotonic() < deadline:
            if workers.rig.consumed() and workers.rig.decided():
                return ended
            pause.wait(0.5)
        ended += broker.end_hanging()
    raise AssertionError(f"not all is consumed; {ended} hanging transactions were ended\n{workers.logs()}")


@pytest.mark.timeout(240)
def test_a_broker_killed_under_load_loses_and_doubles_nothing(
    rare_seed: int, fresh: str, tmp_path: Path, record_property: Any
) -> None:
    dice, pause = random.Random(rare_seed), threading.Event()
    with own_broker(tmp_path / "kafka") as broker:
        rig = ProcessorRig(broker.address, fresh, partitions=2).create()
        with processors(rig, tmp_path, record_property) as workers:
            running = [workers.start(name, age_ms=300) for name in ("one", "two")]
            with under_load(workers, rare_seed):
                workers.until(lambda: rig.written() > 0, "work is done")
                for _ in range(KILLS):
                    pause.wait(dice.uniform(1.0, 4.0))
                    broker.kill()
                    workers.kills += 1
                    pause.wait(dice.uniform(0.1, 2.0))
                    broker.start()
            hanging = ended_hanging(broker, workers)
            for child in running:
                workers.stop(child)
            record_property("hanging", hanging)
            assert workers.complaints() == []
