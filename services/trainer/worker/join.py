"""Take part in the runs of a trainer on another machine: `python -m services.trainer.worker.join`.

It needs the same settings as the trainer, the machine's own LOOPWRIGHT_TRAINER_NODE_RANK, and the same base. Between
runs it waits for the trainer at LOOPWRIGHT_TRAINER_RDZV_ENDPOINT. It writes nothing but temporary files.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import threading
from typing import Final

import structlog

from services.trainer.base.device import usable_gpus
from services.trainer.core.hardware import PROCESSES_SETTING, DeviceChoice, process_count
from services.trainer.settings import TrainerSettings
from services.trainer.worker import launcher
from shared.entry_point import run_service
from shared.errors import Misconfigured

NO_FOLDER: Final = "-"
"""Run folder of processes that have none."""
PAUSE_S: Final = 2.0
"""Time between two attempts to meet the other machines."""
POLL_S: Final = 0.5
log = structlog.get_logger(__name__)


def start(settings: TrainerSettings) -> subprocess.Popen[bytes]:
    """Start this machine's processes. Raises `Misconfigured` if a GPU is missing."""
    choice = DeviceChoice.parse(settings.device)
    gpus = 0 if choice.kind == "cpu" else len(usable_gpus(choice))
    count = process_count(settings.processes, choice, gpus)
    module = "services.trainer.worker.training_group"
    return subprocess.Popen(
        [sys.executable, "-m", "services.trainer.worker.child", module, NO_FOLDER],
        env=launcher.process_environment(settings.device, count) | {PROCESSES_SETTING: str(count)},
        stdin=subprocess.DEVNULL,
    )


def run(settings: TrainerSettings) -> None:
    """Take part in one run after the other until SIGTERM or SIGINT. Raises `Misconfigured` on machine 0."""
    if settings.node_rank == 0:
        raise Misconfigured(
            "LOOPWRIGHT_TRAINER_NODE_RANK=0 is the machine of the trainer: run `python -m services.trainer` here, and "
            "give the other machines the numbers from 1 to LOOPWRIGHT_TRAINER_NNODES - 1"
        )
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    while not stopping.is_set():
        process = start(settings)
        while process.poll() is None and not stopping.wait(POLL_S):
            pass
        if process.poll() is None:
            launcher.stop(process)
        else:
            log.info("processes_ended", exit_code=process.returncode)
            stopping.wait(PAUSE_S)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m services.trainer.worker.join",
        description="Take part in the runs of a trainer on another machine. Settings: docs/operations.md.",
    )
    parser.parse_args()
    run_service("trainer-join", TrainerSettings, run)


if __name__ == "__main__":
    main()
