"""Start and stop the processes that train.

Training runs in separate processes, so the service never imports torch: it keeps reading and answering while a run
uses the processor, and a run's memory is returned when its process ends. A process ends with the service, even if the
service is killed with SIGKILL.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, Literal

from services.trainer.base.device import usable_gpus, visible_devices
from services.trainer.core.hardware import PROCESSES_SETTING, DeviceChoice, process_count
from services.trainer.run import resolved
from services.trainer.run.checkpoint_manifest import newest_step
from services.trainer.run.folder import CHECKPOINTS, GATE_AGAIN_LOG, REPRODUCE_LOG, RUN_LOG
from services.trainer.run.position import is_training, position_of, work_folder
from services.trainer.worker.child import PARENT_PID_VARIABLE
from shared.errors import Misconfigured

PAUSE_VARIABLE: Final = "LOOPWRIGHT_TRAINER_TEST_PAUSE"
"""Environment variable for fault tests in a demo deployment: the stage at which to pause, so a test can kill it."""
DEVICE_CHECK_LOG: Final = "device-check.log"
DATASET_TASK_LOG: Final = "dataset_task.log"
NICENESS: Final = 10
"""Child processes yield the processor to serving and streaming on the same machine."""
PAUSE_S: Final = 600.0
STOP_TIMEOUT_S: Final = 10.0

TUNING: Final = {
    # By default torch returns large blocks to the system after each step and requests them again. Keeping them makes
    # training on a CPU 1.5 times as fast.
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "OMP_NUM_THREADS": "1",
    # How long a thread spins while it waits for others. The default starves other threads on a busy machine, where a
    # step took 100 times as long. Not spinning costs 20 % on an idle machine; this value costs nothing.
    "GOMP_SPINCOUNT": "20000",
    "TOKENIZERS_PARALLELISM": "false",
    # Packs differ in size, and so do the blocks of a GPU's memory that they leave behind.
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
}
"""Environment variables of a training process, unless the service's environment sets them."""


SINGLE_PROCESS: Final = {PROCESSES_SETTING: "1", "LOOPWRIGHT_TRAINER_NNODES": "1"}
"""Settings of a process that trains alone, such as one that reproduces a version."""


def start_run(
    folder: Path, device: str = "auto", processes: int | Literal["auto"] = 1, nodes: int = 1
) -> subprocess.Popen[bytes]:
    """Start the process of the run whose folder this is. Its output is appended to `run.log`.

    If several processes train the run, the pipeline prepares the training, and then this starts their agent.

    Args:
        folder: The run's folder.
        device: LOOPWRIGHT_TRAINER_DEVICE.
        processes: LOOPWRIGHT_TRAINER_PROCESSES.
        nodes: LOOPWRIGHT_TRAINER_NNODES.

    Raises:
        Misconfigured: A GPU is missing.
        OtherWorldSize: The run has checkpoints of another number of processes.

    """
    count = process_count(processes, DeviceChoice.parse(device), _gpus(device))
    training = is_training(position_of(folder))
    if training:
        require_same_processes(work_folder(folder), count * nodes)
    together = training and count * nodes > 1
    return _start(
        "services.trainer.worker.training_group" if together else "services.trainer.worker.pipeline",
        work_folder(folder) if together else folder,
        folder / RUN_LOG,
        device,
        count,
        {PROCESSES_SETTING: str(count)},
    )


def _gpus(device: str) -> int:
    choice = DeviceChoice.parse(device)
    return 0 if choice.kind == "cpu" else len(usable_gpus(choice))


class OtherWorldSize(Misconfigured):
    """A run has checkpoints of another number of processes than the settings give."""


def require_same_processes(folder: Path, processes: int) -> None:
    """Raise `OtherWorldSize` if the run in `folder` has a checkpoint of another number of processes."""
    recipe = resolved.read(folder)
    step = newest_step(folder / CHECKPOINTS)
    if recipe is not None and step and recipe.processes != processes:
        raise OtherWorldSize(
            f"the run has trained {step} steps with {recipe.processes} process(es), and the settings now give "
            f"{processes}; its checkpoints resume with the same number only. Set {PROCESSES_SETTING} (times "
            f"LOOPWRIGHT_TRAINER_NNODES) back and restart the trainer, or drop the run by `loopwright train now "
            f"--again`, which trains the same data from the start"
        )


def start_reproduction(folder: Path, device: str = "auto") -> subprocess.Popen[bytes]:
    """Start the process that reproduces the version prepared in `folder`."""
    return _start("services.trainer.worker.reproduce", folder, folder / REPRODUCE_LOG, device)


def start_gate_again(folder: Path, device: str = "auto") -> subprocess.Popen[bytes]:
    """Start the process that gates the version prepared in `folder`."""
    return _start("services.trainer.worker.gate_again", folder, folder / GATE_AGAIN_LOG, device)


def start_dataset_task(folder: Path) -> subprocess.Popen[bytes]:
    """Start the process that executes the task prepared in `folder`."""
    return _start("services.trainer.worker.dataset_task", folder, folder / DATASET_TASK_LOG, "cpu")


def start_device_check(report: Path, device: str) -> subprocess.Popen[bytes]:
    """Start the process that checks the device and writes its report to the file `report`."""
    log = report.with_name(DEVICE_CHECK_LOG)
    log.unlink(missing_ok=True)
    return _start("services.trainer.worker.device_check", report, log, device)


def _start(
    module: str,
    argument: Path,
    log: Path,
    device: str,
    gpus: int = 1,
    settings: dict[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process. Raises `Misconfigured` if `device` (LOOPWRIGHT_TRAINER_DEVICE) names a GPU that is missing."""
    environment = process_environment(device, gpus) | (SINGLE_PROCESS if settings is None else settings)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "services.trainer.worker.child", module, str(argument)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def process_environment(device: str = "auto", gpus: int = 1) -> dict[str, str]:
    """Return the environment variables of a process that ends with this one. It sees at most `gpus` GPUs."""
    own = {PARENT_PID_VARIABLE: str(os.getpid())}
    return TUNING | dict(os.environ) | visible_devices(device, gpus) | own


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to stop, so it saves a checkpoint, and kill it after `STOP_TIMEOUT_S`.

    A kill loses at most the work since the last checkpoint.
    """
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def pause_for_fault_test(stage: str) -> None:
    """Pause at `stage` if a fault test asks for it."""
    if os.environ.get(PAUSE_VARIABLE) == stage and os.environ.get("LOOPWRIGHT_DEMO") == "true":
        time.sleep(PAUSE_S)
