"""Batch sizes that a run reduces when memory does not suffice, by the position of the run.

In training that is the micro-batch (`micro_batch.py`), in base answers and at the gate the rows evaluated at once
(`eval_batch.py`). They are stored in the folder in which the run works, which for a control is its own.
"""

from __future__ import annotations

from pathlib import Path

import structlog

from services.trainer.run import eval_batch, micro_batch
from services.trainer.run.folder import ExitCode
from services.trainer.run.position import is_evaluating, is_training, work_folder

log = structlog.get_logger(__name__)


def can_halve(folder: Path, position: str) -> bool:
    """Return whether smaller batches are possible for a run at `position`."""
    if is_training(position):
        return micro_batch.can_halve(work_folder(folder))
    return is_evaluating(position) and eval_batch.can_halve(work_folder(folder))


def halve(folder: Path, position: str) -> bool:
    """Store smaller batches for the next process of a run at `position`. Return False if that is not possible."""
    if not can_halve(folder, position):
        return False
    if is_training(position):
        return micro_batch.halve(work_folder(folder)) is not None
    return eval_batch.halve(work_folder(folder))


def handle_out_of_memory(folder: Path, position: str, error: str) -> ExitCode:
    """Store smaller batches for the next process. Return the exit code of this one, which says whether that helps."""
    smaller = halve(folder, position)
    log.warning("out_of_memory", position=position, smaller_batches=smaller, error=error[:300])
    return ExitCode.OUT_OF_MEMORY if smaller else ExitCode.MEMORY_EXHAUSTED


def reduction_note(folder: Path, position: str) -> str | None:
    """Return a note for operators if a run at `position` uses smaller batches than planned, else None."""
    if is_training(position):
        return micro_batch.reduction_note(work_folder(folder))
    return eval_batch.reduction_note(work_folder(folder))
