"""How far a run has come: the results in its folder decide what its next process does, and in which folder."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from services.trainer.dataset import snapshot_files
from services.trainer.run.checkpoint_manifest import newest_step
from services.trainer.run.folder import ADAPTER, CHECKPOINTS, CONTROL, ENVIRONMENTS

SNAPSHOT: Final = "snapshot"
BASE_ANSWERS: Final = "base answers"
TRAINING: Final = "training"
GATE: Final = "gate"
GATE_WITH_CONTROL: Final = "gate with control"
CONTROL_PREFIX: Final = f"{CONTROL}: "


def position_of(folder: Path) -> str:
    """Return in words from where the run in `folder` would resume."""
    if not snapshot_files.is_complete(folder):
        return SNAPSHOT
    if (folder / ADAPTER).exists():
        if not snapshot_files.is_complete(folder / CONTROL):
            return GATE
        if (folder / CONTROL / ADAPTER).exists():
            return GATE_WITH_CONTROL
        return CONTROL_PREFIX + position_of(folder / CONTROL)
    if not (folder / ENVIRONMENTS).exists():
        return BASE_ANSWERS
    return f"{TRAINING}, step {newest_step(folder / CHECKPOINTS)}"


def work_folder(folder: Path) -> Path:
    """Return the folder in which the next process of the run in `folder` works: the run's own, or its control's."""
    return folder / CONTROL if position_of(folder).startswith(CONTROL_PREFIX) else folder


def is_training(position: str) -> bool:
    """Return whether a process at this position trains the run or its control."""
    return position.removeprefix(CONTROL_PREFIX).startswith(TRAINING)


def is_evaluating(position: str) -> bool:
    """Return whether a process at this position computes answers."""
    return position.removeprefix(CONTROL_PREFIX) in {BASE_ANSWERS, GATE, GATE_WITH_CONTROL}
