"""The phases of a run in which it can be killed: how a test detects them, and what it kills."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from services.trainer.dataset.snapshot_files import SNAPSHOT
from services.trainer.run.checkpoint_manifest import has_manifest
from services.trainer.run.folder import ADAPTER, CHECKPOINTS, GATE_RESULT
from tests.integration.service_process import Service
from tests.trainer_fixture import wait_until

STAGE_S = 150.0
"""Timeout of a stage. It takes a few seconds, most of them for imports, and longer on a busy machine."""
POLL_S = 0.001
Reached = Callable[[Path], bool]


@dataclass(frozen=True)
class Phase:
    """A phase of a run.

    `reached` returns whether the run in this folder has reached it. The kill follows at a random moment within
    `window_s`. Phases too short to be hit have a `pause`, at which the trainer waits.
    """

    name: str
    reached: Reached
    window_s: float = 0.0
    pause: str = ""


def _has(*names: str) -> Reached:
    return lambda run: any((run / name).exists() for name in names)


def _checkpoint(*, marked: bool) -> Reached:
    return lambda run: any(
        has_manifest(folder) is marked for folder in (run / CHECKPOINTS).glob("checkpoint-*")
    )


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
"""Phases in order. The last one, `published`, shows in the log and not in the folder."""


def plan(seed: int, rng: random.Random) -> list[Phase]:
    """Return four phases in order, one of them at random. Any three consecutive seeds cover all phases."""
    covered = [PHASES[(3 * seed + n) % len(PHASES)] for n in range(3)]
    return sorted([*covered, rng.choice(PHASES)], key=PHASES.index)


def wait_for(phase: Phase, run: Callable[[], Path | None], rng: random.Random) -> None:
    """Wait until a run has reached the phase, and a random moment longer."""
    deadline, tick = time.monotonic() + STAGE_S, Event()
    while time.monotonic() < deadline:
        folder = run()
        if folder is not None and _is_reached(phase.reached, folder):
            tick.wait(rng.random() * phase.window_s)
            return
        tick.wait(POLL_S)
    raise AssertionError(f"{phase.name} not reached within {STAGE_S} s")


def _is_reached(reached: Reached, run: Path) -> bool:
    try:
        return reached(run)
    except FileNotFoundError:  # the folder was removed meanwhile
        return False


def kill_service(service: Service) -> None:
    """Kill only the service, and wait for its run's process to die with it."""
    children = children_of(service.child.pid)
    service.child.kill()
    service.child.wait()
    wait_until(lambda: not any(map(is_alive, children)), 10, "the run's process dying with the trainer")


def kill_run(service: Service) -> bool:
    """Kill only the run's process. Return False if there is none at this moment."""
    children = [pid for pid in children_of(service.child.pid) if is_alive(pid)]
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    return bool(children)


def children_of(pid: int) -> list[int]:
    """Return the child processes of a process."""
    listing = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in listing.read_text().split()] if listing.exists() else []


def is_alive(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text() and os.getpid() != pid
