"""What hands the tokens of a running `generate` to their rows, and stops each row by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import StoppingCriteria

from services.inference.core.generation_request import BatchRow


class BatchStreamer(StoppingCriteria):
    """One stopping criterion over the whole batch, and the streamer in one.

    `generate` asks its stopping criteria after every step, *before* it calls a streamer, so a
    `BaseStreamer` would learn of a stop string one step too late, and the row would cost a forward pass for
    nothing. Here a row sees its token, decides, and the answer (a bool per row) takes it out of the batch
    at once.
    """

    def __init__(self, rows: Sequence[BatchRow], eos: frozenset[int]) -> None:
        self._rows = rows
        self._eos = eos

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **_: Any) -> torch.Tensor:
        """(batch, length) token ids so far -> (batch,) whether each row is done."""
        for row, token in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
            row.take(token, self._eos)
        for ask in {id(row.ask): row.ask for row in self._rows}.values():
            ask.end_if_done()
        return torch.tensor([row.finish_reason is not None for row in self._rows], device=input_ids.device)
