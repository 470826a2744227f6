"""How far a run has come: the results in its folder decide what its next process does."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from services.trainer.dataset import snapshot_files
from services.trainer.run.checkpoint_manifest import newest_step
from services.trainer.run.folder import ADAPTER, CHECKPOINTS, ENVIRONMENTS

SNAPSHOT: Final = "snapshot"
BASE_ANSWERS: Final = "base answers"
TRAINING: Final = "training"
GATE: Final = "gate"


def position_of(folder: Path) -> str:
    """Return in words from where the run in `folder` would resume."""
    if not snapshot_files.is_complete(folder):
        return SNAPSHOT
    if (folder / ADAPTER).exists():
        return GATE
    if not (folder / ENVIRONMENTS).exists():
        return BASE_ANSWERS
    return f"{TRAINING}, step {newest_step(folder / CHECKPOINTS)}"
