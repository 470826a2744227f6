"""Streaming and stopping of each row of a running `generate` call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import StoppingCriteria

from services.inference.engine.batching import BatchRow


class BatchStreamer(StoppingCriteria):
    """A stopping criterion that also streams: it hands each row its new token and stops rows one by one.

    `generate` evaluates its stopping criteria after every step, before it calls a streamer. A `BaseStreamer` would
    learn of a stop string one step too late, at the cost of a forward pass.
    """

    def __init__(self, rows: Sequence[BatchRow], eos_token_ids: frozenset[int]) -> None:
        self._rows = rows
        self._eos_token_ids = eos_token_ids

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **_: Any) -> torch.Tensor:
        """Push each row's newest token and return which rows are done.

        Args:
            input_ids: Token ids so far, (batch, seq).
            scores: Ignored.

        Returns:
            Booleans, (batch,).

        """
        for row, token in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
            row.push(token, self._eos_token_ids)
        for generation in {id(row.generation): row.generation for row in self._rows}.values():
            generation.end_if_finished()
        return torch.tensor([row.finish_reason is not None for row in self._rows], device=input_ids.device)
