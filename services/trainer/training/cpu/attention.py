"""Attention implementation for training on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from services.trainer.base.model import default_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_EAGER_TOKENS: Final = 1024
"""Row length up to which eager attention is used, because its memory grows with the square of the length."""


def with_training_attention(base: PreTrainedModel, max_tokens: int) -> PreTrainedModel:
    """Use eager attention on a CPU, for rows of at most `max_tokens` tokens if these are few. Returns `base`.

    The backward pass of PyTorch's fused attention is slow on a CPU.
    """
    if default_device() == "cpu" and max_tokens <= MAX_EAGER_TOKENS:
        base.set_attn_implementation("eager")
    return base
