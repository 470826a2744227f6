"""Chooses the size of a run's micro-batches from the memory that two of them need, before the first step on a GPU.

The resolved recipe estimates that memory from the base's shape, and leaves a margin for what it does not know: kernels,
attention, quantised layers. A measurement takes two steps' time and knows. It happens once per run, with a single
process: several would have to agree. Where memory does not suffice after all, sizes are halved as usual
(`run/micro_batch.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog
import torch
from transformers import TrainerCallback

from services.trainer.base.device import gpu_memory_limit
from services.trainer.base.memory import is_out_of_memory, release_memory
from services.trainer.core.micro_batch_fit import MemoryUse, fitting_tokens
from services.trainer.training.rows import TokenizedRow
from shared.feedback_kinds import Objective

if TYPE_CHECKING:
    from services.trainer.training.trainer import StepTrainer

MOMENT_BYTES: Final = 8
"""Bytes per trained weight of an Adam optimiser's state, which does not exist before the first step."""
log = structlog.get_logger(__name__)


class MemoryMeter(Protocol):
    """Measures the memory of this process on its device."""

    def start(self) -> None:
        """Forget the peak so far."""

    def peak_bytes(self) -> int:
        """Return the most bytes that were allocated at a time since `start`."""

    def available_bytes(self) -> int:
        """Return the bytes that this process can allocate in all, those that it has included."""


class GpuMeter:
    """The meter of a process that uses one GPU."""

    def start(self) -> None:
        """Forget the peak so far."""
        torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int:
        """Return the peak, for which what is queued on the GPU need not have been computed."""
        return torch.cuda.max_memory_allocated()

    def available_bytes(self) -> int:
        """Return what other processes leave, within the limit that this one may have set itself."""
        free, total = torch.cuda.mem_get_info()
        return min(gpu_memory_limit(total), free + torch.cuda.memory_reserved())


class MicroBatchProbe(TrainerCallback):
    """Resizes the micro-batches of a training before its first step.

    Args:
        trainer: The training.
        meter: Measures memory.
        row: The row that is measured (`probe_row`).
        planned: Size by estimate, in tokens: the larger of the two measured sizes.
        limit: Most tokens that are of use.
        chosen: Called with the chosen size.

    """

    def __init__(
        self,
        trainer: StepTrainer,
        meter: MemoryMeter,
        row: TokenizedRow,
        *,
        planned: int,
        limit: int,
        chosen: Callable[[int], None],
    ) -> None:
        self._trainer = trainer
        self._meter = meter
        self._row = row
        self._planned = planned
        self._limit = limit
        self._chosen = chosen

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure, and resize. Raises the error of a single row for which memory does not suffice."""
        row_tokens = self._row.tokens
        small = self._use(1)
        large = self._largest(max(2, min(self._limit, self._planned) // row_tokens))
        if large is None:
            tokens = row_tokens
        else:
            tokens = fitting_tokens(
                small,
                large,
                available_bytes=self._meter.available_bytes(),
                reserved_bytes=self._unallocated(),
                longest_row=row_tokens,
                limit=self._limit,
            )
        log.info("micro_batch_measured", small=small, large=large, tokens=tokens, planned=self._planned)
        self._trainer.resize_micro_batches(tokens)
        self._chosen(tokens)

    def _largest(self, rows: int) -> MemoryUse | None:
        """Return the memory of `rows` rows, or of half as many while memory does not suffice; None for one row."""
        while rows > 1:
            try:
                return self._use(rows)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            self._trainer.forget_gradients()  # here no traceback refers to the tensors of the failed attempt
            release_memory()
            rows //= 2
        return None

    def _use(self, rows: int) -> MemoryUse:
        vocabulary = self._trainer.vocabulary()
        batch = [distinct(self._row, number % vocabulary) for number in range(rows)]
        self._meter.start()
        self._trainer.try_micro_batch(batch)
        return MemoryUse(sum(row.tokens for row in batch), self._meter.peak_bytes())

    def _unallocated(self) -> int:
        """Return the bytes of the optimiser's state that do not exist yet."""
        optimizer = self._trainer.optimizer
        if optimizer is None or optimizer.state:
            return 0
        weights: int = sum(one.numel() for group in optimizer.param_groups for one in group["params"])
        return MOMENT_BYTES * weights


def probe_row(rows: Sequence[TokenizedRow]) -> TokenizedRow:
    """Return the longest sequence of a run as a row, whose copies need at least as much memory as the run's rows.

    It is a judgement if there are any objectives but SFT, whose loss a fused kernel computes in less memory. It is no
    preference, because two answers share the memory of their prompt.
    """
    longest = max((one for row in rows for one in row.sequences), key=lambda one: len(one.ids))
    objective: Objective = "sft" if all(row.objective == "sft" for row in rows) else "kto"
    return TokenizedRow("probe", objective, longest.prompt, longest.answer)


def distinct(row: TokenizedRow, token: int) -> TokenizedRow:
    """Return a row of the same size that begins with `token`, so that it shares no beginning with others."""
    return replace(row, prompt=(token, *row.prompt[1:]))
