"""What all arms share: the base, the tokenizer and the rows of an arm, and the figures of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.trainer_gpu.base import make_base, weights_of
from benchmarks.trainer_gpu.clock import Clock, peak_memory
from benchmarks.trainer_gpu.data import make_rows, make_texts, make_tokenizer
from benchmarks.trainer_gpu.plan import SHAPES, Arm, Workload
from services.trainer.training.rows import TokenizedRow
from shared.chat_format import ChatFormat

PEAKS: Final = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}
"""Dense bf16 operations per second by the vendor's data sheet, by a part of the card's name."""
WARMUP_STEPS: Final = 4
"""Steps that are not timed: kernels are compiled in them."""


class Bench:
    """One arm on one base.

    Args:
        arm: The arm.
        folder: Folder for files that arms share.
        tiny: Whether this is the quick form: a tiny base and few rows.

    """

    def __init__(self, arm: Arm, folder: Path, *, tiny: bool) -> None:
        self.arm, self.folder, self.tiny = arm, folder, tiny
        self.cuda = torch.cuda.is_available()
        self.device = "cuda" if self.cuda else "cpu"
        self.card = torch.cuda.get_device_name() if self.cuda else "cpu"
        self.shape = SHAPES[arm.base]
        self.tokenizer = make_tokenizer()
        self.chat = ChatFormat(self.tokenizer)
        self.warmup_steps = 1 if tiny else WARMUP_STEPS

    def base(self, dtype: str) -> Any:
        """Return a new base on the device."""
        return make_base(self.shape, dtype, self.device)

    def rows(self, workload: Workload, count: int) -> list[TokenizedRow]:
        """Return the rows of a data set as a run has them."""
        return make_rows(self.chat, workload, count)

    def texts(self, workload: Workload, count: int) -> list[dict[str, Any]]:
        """Return the questions and answers of a data set."""
        return make_texts(self.chat, workload, count)

    def figures(self, clock: Clock, notes: str) -> dict[str, Any]:
        """Return the figures of a training."""
        tokens_per_s = clock.tokens / clock.seconds
        peak = next((value for name, value in PEAKS.items() if name in self.card), None)
        operations = 4 * weights_of(self.shape) * tokens_per_s
        return {
            "tokens_per_s": round(tokens_per_s, 1),
            "utilisation": round(operations / peak, 3) if peak else None,
            "busy": clock.busy,
            "steps": clock.steps,
            "seconds": round(clock.seconds, 2),
            "notes": notes,
            **peak_memory(),
        }
