"""Language model head that TRL's KTO and DPO trainers need, fast on a CPU.

TRL's trainers ask the model for the likelihoods of the labels, and install a fused head for it that needs Triton to be
fast. Here the head is applied once, to the answers' tokens only, as in `sft_trainer.py`.
"""

from __future__ import annotations

import functools
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy
from trl.trainer.utils import FusedCausalLMOutput

from services.trainer.base.shared_prefix import logits_at
from services.trainer.training.cpu.sft_trainer import IGNORE_INDEX

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def add_answers_head(base: PreTrainedModel) -> None:
    """Replace `base.forward` with one that handles TRL's `fused_lm_head=True`.

    It returns `log_probs` (batch, seq - 1) of the labels, 0 where a label is ignored. Entropy, mean logits and top-1
    accuracy, which TRL only logs, are 0. Calls without `fused_lm_head` are unchanged.
    """
    forward = base.forward

    @functools.wraps(type(base).forward)
    def forward_with_answers_head(
        _self: PreTrainedModel,
        *args: Any,
        fused_lm_head: bool = False,
        labels: torch.Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        if not fused_lm_head or labels is None:
            return forward(*args, **inputs, **({} if labels is None else {"labels": labels}))
        targets = labels[:, 1:]
        has_loss = targets != IGNORE_INDEX
        logits = logits_at(base, forward, inputs, has_loss).float()
        likelihoods = -cross_entropy(logits, targets[has_loss], reduction="none")
        log_probs = likelihoods.new_zeros(targets.shape).masked_scatter(has_loss, likelihoods)
        zeros = log_probs.detach().new_zeros(targets.shape)
        return FusedCausalLMOutput(
            log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
        )

    base.forward = MethodType(forward_with_answers_head, base)
