"""TRL's SFT trainer with a loss that is fast on a CPU.

Without Triton, TRL applies the language model's head tile by tile in plain torch, and computes each tile twice, in fp32
for the gradient: two fifths of a step on a CPU. Here the head is applied once, to the answers' tokens only, so memory
is bounded by their number times the vocabulary. The rows' common prefix is computed once, too (`shared_prefix.py`).
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.nn.functional import cross_entropy
from trl.trainer.sft_trainer import SFTTrainer

from services.trainer.base.shared_prefix import logits_at

IGNORE_INDEX: Final = -100
"""Label of tokens without a loss."""


class CpuSFTTrainer(SFTTrainer):
    """SFT trainer with the same loss, the mean over the answers' tokens, but without entropy and token accuracy."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a batch, a scalar.

        Args:
            model: The model, possibly wrapped.
            inputs: `input_ids`, `attention_mask` and `labels`, each (batch, seq).
            return_outputs: Return TRL's own loss and outputs instead.
            num_items_in_batch: Number of tokens to divide by; by default those of this batch's answers.

        """
        if return_outputs or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
        targets = inputs["labels"][:, 1:]
        has_loss = targets != IGNORE_INDEX
        model_inputs = {name: value for name, value in inputs.items() if name != "labels"}
        logits = logits_at(model, model, model_inputs, has_loss)
        total = cross_entropy(logits.float(), targets[has_loss], reduction="sum")
        return total / max(1, int(has_loss.sum() if num_items_in_batch is None else num_items_in_batch))
