"""Where a run can be killed: how a test sees that it is there, and what it kills."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from services.trainer.dataset.snapshot import SNAPSHOT
from services.trainer.run.checkpoint_manifest import has_manifest
from services.trainer.run.folder import ADAPTER, CHECKPOINTS, GATE_RESULT
from tests.integration.service_process import Service
from tests.trainer_fixture import until

SLOWLY_S = 150.0
"""A stage takes a few seconds; most of them are imports, which a loaded machine stretches."""
LOOK_S = 0.001
There = Callable[[Path], bool]


@dataclass(frozen=True)
class Phase:
    """`there(run's folder)`: it has begun. `within_s`: killed at a random moment so soon after. `pause`: where the
    trainer is told to stand still, for moments too short to be met."""

    name: str
    there: There
    within_s: float = 0.0
    pause: str = ""


def _has(*names: str) -> There:
    return lambda run: any((run / name).exists() for name in names)


def _checkpoint(*, marked: bool) -> There:
    return lambda run: any(has_manifest(one) is marked for one in (run / CHECKPOINTS).glob("checkpoint-*"))


PHASES = (
    Phase("process started", _has("run.log"), 2.0),
    Phase("snapshot taken", _has(SNAPSHOT), 3.0),
    Phase("checkpoint half-written", _checkpoint(marked=False)),
    Phase("training", _checkpoint(marked=True), 1.0),
    Phase("adapter half-written", _has(f".{ADAPTER}.incoming", ADAPTER)),
    Phase("trained", _has(ADAPTER), pause="trained"),
    Phase("gate", _has(ADAPTER), 3.0),
    Phase("artifact half-written", _has(".artifact.incoming", "artifact")),
    Phase("before publishing", _has(GATE_RESULT), pause="gated"),
)
"""In the order in which a run comes by them. The last, `published`, shows in the log and not in the folder."""


def plan(seed: int, dice: random.Random) -> list[Phase]:
    """Four phases in their order: three seeds one after another come by all of them; each has one more by chance."""
    turn = [PHASES[(3 * seed + n) % len(PHASES)] for n in range(3)]
    return sorted([*turn, dice.choice(PHASES)], key=PHASES.index)


def wait_for(phase: Phase, run: Callable[[], Path | None], dice: random.Random) -> None:
    """Until the run is there, and a random moment longer. A folder may come and go while it is looked at."""
    deadline, tick = time.monotonic() + SLOWLY_S, Event()
    while time.monotonic() < deadline:
        folder = run()
        if folder is not None and _safely(phase.there, folder):
            tick.wait(dice.random() * phase.within_s)
            return
        tick.wait(LOOK_S)
    raise AssertionError(f"no sign of {phase.name} within {SLOWLY_S} s")


def _safely(there: There, run: Path) -> bool:
    try:
        return there(run)
    except FileNotFoundError:
        return False


def kill_the_service(service: Service) -> None:
    """-9 to the service alone; its run's process must not outlive it."""
    children = children_of(service.child.pid)
    service.child.kill()
    service.child.wait()
    until(lambda: not any(map(lives, children)), 10, "the run's process dying with the trainer")


def kill_the_run(service: Service) -> bool:
    """-9 to the run's process alone; the service goes on. False where there is none at this moment."""
    found = [pid for pid in children_of(service.child.pid) if lives(pid)]
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    return bool(found)


def children_of(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in found.read_text().split()] if found.exists() else []


def lives(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text() and os.getpid() != pid
