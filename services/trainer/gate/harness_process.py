"""Run tasks of lm-evaluation-harness on one version, in a process of its own.

    python -m services.trainer.gate.harness_process --check TASKS       names of tasks, separated by commas
    python -m services.trainer.gate.harness_process REQUEST OUTPUT      files with JSON, see `harness.py`

Needs the package `lm_eval` (`pip install lm_eval`), which is not among Loopwright's dependencies. Uses of it only
`simple_evaluate` and `TaskManager`.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SEED = 20


def unknown_tasks(tasks: Sequence[str]) -> list[str]:
    """Return the tasks that the installed harness does not have."""
    known = set(importlib.import_module("lm_eval.tasks").TaskManager().all_tasks)
    return [task for task in tasks if task not in known]


def evaluate(request: Mapping[str, Any]) -> dict[str, dict[str, bool]]:
    """Return for each task whether the version is right, by the number of the sample."""
    results = importlib.import_module("lm_eval").simple_evaluate(
        model="hf",
        model_args=request["model_args"],
        tasks=list(request["tasks"]),
        batch_size=request["batch_size"],
        device=request["device"],
        apply_chat_template=True,
        log_samples=True,
        bootstrap_iters=0,
        random_seed=SEED,
        numpy_random_seed=SEED,
        torch_random_seed=SEED,
        fewshot_random_seed=SEED,
    )
    return {task: right_by_sample(task, samples) for task, samples in sorted(results["samples"].items())}


def right_by_sample(task: str, samples: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """Return whether each sample is right: by the task's first metric of 0 or 1, and its first filter.

    Raises:
        ValueError: The task has no such metric.
    """
    first = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    for metric in samples[0]["metrics"] if samples else ():
        values = {str(sample["doc_id"]): sample[metric] for sample in first}
        if all(isinstance(value, bool | int | float) and value in (0, 1) for value in values.values()):
            return {name: bool(value) for name, value in values.items()}
    raise ValueError(
        f"the task {task} has no metric that is 0 or 1 for each sample, so versions cannot be compared. Remove it from "
        "LOOPWRIGHT_TRAINER_GATE_LM_EVAL"
    )


def main(arguments: Sequence[str]) -> int:
    """Check names of tasks, or evaluate a request and write the output."""
    if arguments[0] == "--check":
        unknown = unknown_tasks(arguments[1].split(","))
        if unknown:
            sys.stderr.write(f"lm_eval has no task {', '.join(unknown)}\n")
        return 1 if unknown else 0
    request, output = map(Path, arguments)
    output.write_text(json.dumps(evaluate(json.loads(request.read_bytes()))), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
