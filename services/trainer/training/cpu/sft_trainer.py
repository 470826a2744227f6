"""TRL's SFT trainer with a loss that suits a CPU.

Without Triton, which a CPU does not have, TRL folds the language model's head tile by tile in plain torch and makes
each tile twice, in fp32 for the gradient: measured at two fifths of a step. Here the head is applied once, to the
answers' tokens alone: memory is bounded by their number times the vocabulary. What all rows begin with is computed
once, too (`shared_prefix.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy
from trl.trainer.sft_trainer import SFTTrainer

from services.trainer.base.shared_prefix import logits_at

IGNORED = -100


class CpuSFTTrainer(SFTTrainer):
    """The same loss, mean over the answers' tokens; no entropy and no token accuracy on the way."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        if return_outputs or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
        wanted = inputs["labels"][:, 1:]
        kept = wanted != IGNORED
        rest = {name: given for name, given in inputs.items() if name != "labels"}
        logits = logits_at(model, model, rest, kept)
        total = cross_entropy(logits.float(), wanted[kept], reduction="sum")
        return total / max(1, int(kept.sum() if num_items_in_batch is None else num_items_in_batch))
