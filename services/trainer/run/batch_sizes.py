"""Batch sizes that a run reduces when memory does not suffice, by the position of the run.

In training that is the micro-batch (`micro_batch.py`), in base answers and at the gate the rows evaluated at once
(`eval_batch.py`).
"""

from __future__ import annotations

from pathlib import Path

import structlog

from services.trainer.run import eval_batch, micro_batch
from services.trainer.run.folder import ExitCode
from services.trainer.run.position import BASE_ANSWERS, GATE, TRAINING

log = structlog.get_logger(__name__)


def can_halve(folder: Path, position: str) -> bool:
    """Return whether smaller batches are possible for a run at `position`."""
    if position.startswith(TRAINING):
        return micro_batch.can_halve(folder)
    return position in {BASE_ANSWERS, GATE} and eval_batch.can_halve(folder)


def halve(folder: Path, position: str) -> bool:
    """Store smaller batches for the next process of a run at `position`. Return False if that is not possible."""
    if not can_halve(folder, position):
        return False
    if position.startswith(TRAINING):
        return micro_batch.halve(folder) is not None
    return eval_batch.halve(folder)


def handle_out_of_memory(folder: Path, position: str, error: str) -> ExitCode:
    """Store smaller batches for the next process. Return the exit code of this one, which says whether that helps."""
    smaller = halve(folder, position)
    log.warning("out_of_memory", position=position, smaller_batches=smaller, error=error[:300])
    return ExitCode.OUT_OF_MEMORY if smaller else ExitCode.MEMORY_EXHAUSTED


def reduction_note(folder: Path, position: str) -> str | None:
    """Return a note for operators if a run at `position` uses smaller batches than planned, else None."""
    if position.startswith(TRAINING):
        return micro_batch.reduction_note(folder)
    return eval_batch.reduction_note(folder)
