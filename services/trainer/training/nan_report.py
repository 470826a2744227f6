"""Diagnostics file of a run whose loss or gradient became NaN or infinite.

It contains no text: rows are named by the feedback behind them. An erasure that affects the run deletes the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from services.trainer.files import write_whole
from services.trainer.run.checkpoint_manifest import intact_checkpoints
from services.trainer.run.folder import CHECKPOINTS, NAN_REPORT

MAX_HISTORY: Final = 100
"""Log entries that the file contains at most."""
CHECKED_METRICS: Final = ("loss", "grad_norm")


def non_finite_metric(logs: Mapping[str, Any]) -> str | None:
    """Return for example `loss is nan` if a checked metric is not finite, else None."""
    for name in CHECKED_METRICS:
        value = logs.get(name)
        if value is not None and not math.isfinite(float(value)):
            return f"{name} is {float(value)}"
    return None


def write(
    run: Path, step: int, metric: str, history: Sequence[Mapping[str, Any]], rows: Sequence[str]
) -> None:
    """Write the diagnostics to the run's folder.

    Args:
        run: The run's folder.
        step: The step at which it happened.
        metric: The result of `non_finite_metric`.
        history: Earlier log entries, oldest first.
        rows: Names of the rows that the step trained on.

    """
    checkpoint = next(intact_checkpoints(run / CHECKPOINTS), None)
    report = {
        "step": step,
        "figure": metric,
        "rows": list(rows),
        "last_good_checkpoint": None if checkpoint is None else f"{CHECKPOINTS}/{checkpoint.name}",
        # JSON has no NaN and no infinity, so they are written as strings.
        "history": [
            {name: value if math.isfinite(value) else str(value) for name, value in _numbers(logs).items()}
            for logs in history[-MAX_HISTORY:]
        ],
    }
    write_whole(run / NAN_REPORT, json.dumps(report, indent=1).encode())


def _numbers(logs: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in logs.items() if isinstance(value, int | float)}
