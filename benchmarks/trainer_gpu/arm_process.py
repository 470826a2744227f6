"""One arm of the benchmark: `python -m benchmarks.trainer_gpu.arm_process ARM FOLDER`. Imports torch."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.trainer_gpu.bench import Bench
from benchmarks.trainer_gpu.numerical_check import check
from benchmarks.trainer_gpu.plan import ARMS, WORKLOADS, Arm, tiny_arms
from benchmarks.trainer_gpu.processes import PREFIX
from benchmarks.trainer_gpu.trainer_arms import gate_small, train_ours, train_small
from benchmarks.trainer_gpu.trl_arms import train_trl
from services.trainer.base.memory import release_memory


def main(
    label: Annotated[str, typer.Argument(help="The arm, such as ours/7b.")],
    folder: Annotated[Path, typer.Argument(help="Folder for files that arms share.")],
    until: Annotated[float, typer.Option(help="When the arm should end, in seconds since 1970.")] = 0.0,
    tiny: Annotated[bool, typer.Option(help="Use a tiny base and few rows.")] = False,
) -> None:
    """Run one arm and print a line of JSON for each data set."""
    (arm,) = [one for one in (tiny_arms() if tiny else ARMS) if one.label == label]
    run_arm(arm, until, folder, tiny=tiny)


def run_arm(arm: Arm, until: float, folder: Path, *, tiny: bool) -> None:
    """Run an arm and print a line for each data set. An error ends a data set, not the arm."""
    bench = Bench(arm, folder, tiny=tiny)
    for number, workload in enumerate(arm.workloads):
        share = (until - time.time()) / (len(arm.workloads) - number)
        try:
            figures = run_workload(bench, workload, 0.3 if tiny else max(3.0, 0.6 * share))
        except Exception as error:  # noqa: BLE001 - whatever fails is the result
            figures = {"error": f"{type(error).__name__}: {error}"[:400]}
        print(PREFIX + json.dumps({"workload": workload, **figures}), flush=True)
        release_memory()


def run_workload(bench: Bench, workload: str, seconds: float) -> dict[str, Any]:
    """Return the figures of one data set."""
    match bench.arm.name:
        case "check":
            figures = check(bench)
        case "small-gate":
            figures = gate_small(bench)
        case "small-train":
            figures = train_small(bench, WORKLOADS[workload], seconds)
        case "ours":
            figures = train_ours(bench, WORKLOADS[workload], seconds, lambda: bench.base("bfloat16"))
        case _:
            figures = train_trl(bench, WORKLOADS[workload], seconds)
    return {"card": bench.card, **figures}


if __name__ == "__main__":
    typer.run(main)
