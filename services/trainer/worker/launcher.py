"""The process in which a run trains, as the service starts and stops it.

torch lives there and not in the service: collecting, health and progress go on while a run has the processor, and its
memory is given back when it ends. It dies with the service, also on kill -9 of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

PARENT_PID_VARIABLE = "LOOPWRIGHT_TRAINER_PARENT"
PAUSE_VARIABLE = "LOOPWRIGHT_TRAINER_TEST_PAUSE"
"""For fault tests, in a demo deployment only: the stage (of service or child) at which to stand still and be killed."""
PAUSE_S = 600.0
STOP_S = 10.0

TUNING: Final = {
    # torch gives large blocks back to the system after every step and faults them in again; keeping them makes
    # training on a CPU half as fast again.
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "OMP_NUM_THREADS": "1",
    # Threads that spin for long while they wait for each other starve one another where anything else runs: a step
    # then took a hundred times as long. Those that sleep at once lose a fifth on a quiet machine; a short spin loses
    # nothing there.
    "GOMP_SPINCOUNT": "20000",
    "TOKENIZERS_PARALLELISM": "false",
}


def start(
    folder: Path, module: str = "services.trainer.worker.pipeline", log: str = "run.log"
) -> subprocess.Popen[bytes]:
    """Starts the process that works in this folder, a run's; what it prints goes to the file `log` in it."""
    with (folder / log).open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", module, str(folder)],
            env=process_environment(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )


def process_environment() -> dict[str, str]:
    """The environment of a process that trains: tuned, where whoever started us says nothing else, and tied to us."""
    return TUNING | dict(os.environ) | {PARENT_PID_VARIABLE: str(os.getpid())}


def stop(child: subprocess.Popen[bytes]) -> None:
    """In order: it keeps a checkpoint of what was learned. After `STOP_S` it is killed; its marks make that safe."""
    child.terminate()
    try:
        child.wait(STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def pause_for_fault_test(stage: str) -> None:
    """Stands still at this stage if a fault test asks for it."""
    if os.environ.get(PAUSE_VARIABLE) == stage and os.environ.get("LOOPWRIGHT_DEMO") == "true":
        time.sleep(PAUSE_S)
