"""Logits of selected positions only, with the rows' common prefix computed once.

The conversations of a line begin alike, with its system prompt or with the one that the chat template sets. In a batch,
those are the same tokens, keys and values in every row. Here they pass through the model once, and the rest of each row
continues from their cached keys and values, as generation continues from a prompt. Likelihoods and gradients equal
those of whole rows up to rounding, and rows do not attend to each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel

Forward: TypeAlias = Callable[..., Any]
"""The forward pass of the model or of a wrapper around it; returns an output with `logits`."""
MIN_SAVED_TOKENS: Final = 64
"""Tokens that sharing must save: a pass over a few tokens costs as much as one over some dozens."""


def logits_at(
    model: PreTrainedModel | PeftModel,
    forward: Forward,
    inputs: Mapping[str, Any],
    positions: torch.Tensor,
) -> torch.Tensor:
    """Return the logits of a causal language model at some positions, (selected, vocab), row by row.

    Args:
        model: the model, whose head and config are used.
        forward: calls the model; the model itself or a wrapper such as DDP.
        inputs: `input_ids` and `attention_mask`, both (batch, seq), padded on the right; more are passed on.
        positions: (batch, seq) or narrower, boolean; at least one is True.

    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    columns = positions.any(0).nonzero().squeeze(1)
    arguments = {**inputs, "use_cache": False, "logits_to_keep": columns}
    shared = min(common_tokens(ids, mask), int(columns[0]))
    if shared * (len(ids) - 1) >= MIN_SAVED_TOKENS and (cache := _new_cache(model.config)) is not None:
        prefix = {"input_ids": ids[:1, :shared], "attention_mask": mask[:1, :shared]}
        forward(**prefix, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(len(ids))
        arguments |= {"input_ids": ids[:, shared:], "past_key_values": cache, "use_cache": True}
        arguments["logits_to_keep"] = columns - shared
    return _forward_selected(model.get_output_embeddings(), forward, arguments, positions[:, columns])


def _forward_selected(
    head: torch.nn.Module, forward: Forward, arguments: Mapping[str, Any], positions: torch.Tensor
) -> torch.Tensor:
    """Run the forward pass with the head applied only at `positions` (batch, columns): rows select other columns."""
    hook = head.register_forward_pre_hook(lambda _, hidden: (hidden[0][positions].unsqueeze(0),))
    try:
        logits: torch.Tensor = forward(**arguments).logits
    finally:
        hook.remove()
    return logits.squeeze(0)


def common_tokens(ids: torch.Tensor, mask: torch.Tensor) -> int:
    """Return how many leading tokens all rows share. `ids` and `mask`: (batch, seq)."""
    alike = (ids == ids[:1]).all(0) & mask.bool().all(0)
    return int(alike.long().cumprod(0).sum())


def _new_cache(config: PretrainedConfig) -> DynamicCache | None:
    """Return an empty cache, or None if the model cannot continue from a shared prefix with gradients.

    A sliding window drops keys, and recurrent states are overwritten; both change what gradients need.
    """
    cache = DynamicCache(config=config)
    return cache if all(type(layer) is DynamicLayer for layer in cache.layers) else None
