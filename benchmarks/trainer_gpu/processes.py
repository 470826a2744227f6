"""Runs each arm in a process of its own, which may crash, and reads what it reports."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.trainer_gpu.plan import Arm
from services.trainer.worker.launcher import TUNING

PREFIX: Final = "RESULT "
"""Begins the line of each result in the output of an arm's process."""
START_S: Final = 25.0
"""Least time that is left for an arm to be started."""


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for the base of the arm `small`, in memory where that has enough space."""
    memory = Path("/dev/shm")
    enough = memory.is_dir() and shutil.disk_usage(memory).free > 20 * 2**30
    return tempfile.TemporaryDirectory(dir=memory if enough else None)


def run_arms(
    arms: Sequence[Arm], total_s: float, device: str, *, tiny: bool, folder: str
) -> dict[tuple[str, str], dict[str, Any]]:
    """Run the arms in turn, each in a process, and return what they and their failures report."""
    deadline = time.monotonic() + total_s
    results: dict[tuple[str, str], dict[str, Any]] = {}
    environment = TUNING | os.environ | {"HF_HUB_OFFLINE": "1"}
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    for number, arm in enumerate(arms):
        left = deadline - time.monotonic()
        for workload in arm.workloads:
            results[arm.label, workload] = {"error": "skipped: no time was left"}
        if left < (1 if tiny else START_S):
            continue
        print(f"{arm.label}: {left:.0f} s left", file=sys.stderr, flush=True)
        log = Path(folder) / f"{number}.log"
        command = [sys.executable, "-m", "benchmarks.trainer_gpu.arm_process", arm.label, folder]
        command += ["--until", str(time.time() + min(arm.seconds, left)), *(["--tiny"] if tiny else [])]
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
            try:
                status = f"the process ended with status {process.wait(left if tiny else min(left, 1.5 * arm.seconds))}"
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                status = "the process did not end in time"
        found, text = read_results(log.read_text(errors="replace"))
        for workload in arm.workloads:
            results[arm.label, workload] = found.get(workload, {"error": f"{status}: {text}"})
    return results


def read_results(output: str) -> tuple[dict[str, dict[str, Any]], str]:
    """Return the results in an arm's output by data set, and its last line that is none."""
    lines = [line for line in output.splitlines() if line.strip()]
    found = [json.loads(line.removeprefix(PREFIX)) for line in lines if line.startswith(PREFIX)]
    others = [line for line in lines if not line.startswith(PREFIX)]
    return {one.pop("workload"): one for one in found}, others[-1][-300:] if others else ""
