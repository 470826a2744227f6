"""Too little memory: recognize it, release what is no longer used, and evaluate fewer rows at once."""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import structlog

from services.trainer.progress import ProgressCallback, ignore_progress

GENERATE_BATCH: Final = 64
"""Conversations answered at once, while memory suffices."""
SCORE_BATCH: Final = 8
"""Answers whose likelihood is computed at once, while memory suffices."""
_OUT_OF_MEMORY_MESSAGE: Final = re.compile(
    r"out of memory|DefaultCPUAllocator|can't allocate memory|Cannot allocate memory|_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
T = TypeVar("T")
log = structlog.get_logger(__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` means that memory did not suffice."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and _OUT_OF_MEMORY_MESSAGE.search(str(error)) is not None
    )


def release_memory() -> None:
    """Return the memory of objects without references, also to the GPU's driver, so that other processes can use it."""
    gc.collect()  # models are in reference cycles
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass(slots=True)
class BatchLimit:
    """How many rows go through the model at once. `on_reduced` is called with each smaller number."""

    rows: int
    on_reduced: Callable[[int], None] = lambda _: None

    def reduce(self, failed: int) -> bool:
        """Halve the limit after memory did not suffice for `failed` rows. Return False if that was a single row."""
        if failed <= 1:
            return False
        self.rows = failed // 2
        self.on_reduced(self.rows)
        return True


@dataclass(slots=True)
class EvalLimits:
    """Limits of a process that generates answers and computes likelihoods."""

    generate: BatchLimit = field(default_factory=lambda: BatchLimit(GENERATE_BATCH))
    score: BatchLimit = field(default_factory=lambda: BatchLimit(SCORE_BATCH))


def run_in_batches(
    rows: Sequence[T],
    limit: BatchLimit,
    work: Callable[[Sequence[T]], None],
    progress: ProgressCallback = ignore_progress,
) -> None:
    """Call `work` with all rows, in order, at most `limit.rows` at once.

    If memory does not suffice for a batch, the limit is halved and the same rows are tried again. `work` must store
    results only when it has all of its batch. Raises the error of a single row for which memory does not suffice.
    """
    done = 0
    while done < len(rows):
        batch = rows[done : done + limit.rows]
        if not _attempt(work, batch, limit):
            # Only here, where no traceback refers to the tensors of the failed attempt any more.
            release_memory()
            continue
        done += len(batch)
        progress(done, len(rows))


def _attempt(work: Callable[[Sequence[T]], None], batch: Sequence[T], limit: BatchLimit) -> bool:
    """Return whether memory sufficed for `batch`. Raises the error if no smaller batch is possible."""
    try:
        work(batch)
    except Exception as error:
        if not is_out_of_memory(error) or not limit.reduce(len(batch)):
            raise
        log.warning("out_of_memory", rows=len(batch), reduced_to=limit.rows, error=str(error)[:300])
        return False
    return True
