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
GRADIENT: Final = "grad_norm"
CHECKED_METRICS: Final = ("loss", GRADIENT)
MAX_OVERFLOWS: Final = 20
"""Logged steps in a row whose gradient may overflow while the loss is scaled."""


class ScaledLoss:
    """Gradients of a loss that is scaled, as for float16 (`core/hardware.py`).

    The scale begins too high on purpose. A step whose gradient overflows is skipped, and the scale is halved. Only a
    gradient that keeps overflowing is an error.
    """

    def __init__(self) -> None:
        self._overflows = 0

    def without_overflow(self, logs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the metrics without the gradient of a skipped step, unless more than `MAX_OVERFLOWS` were skipped."""
        if GRADIENT not in logs:
            return dict(logs)
        overflowed = not math.isfinite(float(logs[GRADIENT]))
        self._overflows = self._overflows + 1 if overflowed else 0
        if not overflowed or self._overflows > MAX_OVERFLOWS:
            return dict(logs)
        return {name: value for name, value in logs.items() if name != GRADIENT}


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
