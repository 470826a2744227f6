"""What is kept of a run whose loss became no number, so that a person can see where and from what.

No texts: rows are named by the feedback behind them. An erasure that concerns the run takes this file too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from services.trainer.files import write_whole
from services.trainer.run.checkpoint_manifest import intact_checkpoints
from services.trainer.run.folder import CHECKPOINTS, NAN_REPORT

MAX_HISTORY = 100
CHECKED_METRICS = ("loss", "grad_norm")


def non_finite_metric(logs: Mapping[str, Any]) -> str | None:
    """`loss is nan`, where one of the figures that are watched is not finite."""
    for name in CHECKED_METRICS:
        value = logs.get(name)
        if value is not None and not math.isfinite(float(value)):
            return f"{name} is {float(value)}"
    return None


def write(
    run: Path, step: int, figure: str, history: Sequence[Mapping[str, Any]], rows: Sequence[str]
) -> None:
    """`history`: what was logged before, oldest first; `rows`: names of what the step trained on."""
    last_good = next(intact_checkpoints(run / CHECKPOINTS), None)
    told = {
        "step": step,
        "figure": figure,
        "rows": list(rows),
        "last_good_checkpoint": None if last_good is None else f"{CHECKPOINTS}/{last_good.name}",
        # As words where they are no number: JSON has none for them.
        "history": [
            {name: value if math.isfinite(value) else str(value) for name, value in _figures(one).items()}
            for one in history[-MAX_HISTORY:]
        ],
    }
    write_whole(run / NAN_REPORT, json.dumps(told, indent=1).encode())


def _figures(logs: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in logs.items() if isinstance(value, int | float)}
