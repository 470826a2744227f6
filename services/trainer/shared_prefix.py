"""What all conversations of a batch begin with, computed once for all of them.

The conversations of a line begin alike: with its system prompt, or with the one that the chat template sets. Of a batch
of rows that is the same tokens, keys and values again and again. Here they go through the model once; the rest of each
row then follows on the keys and values of it, as an answer that is generated follows on its prompt. Likelihoods and
gradients are those of the whole rows, to rounding, and rows do not see each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

WORTH: Final = 64
"""Tokens to be saved at least: a pass over few tokens costs as much as one over some dozens."""


def logits_at(
    forward: Callable[..., Any], config: Any, inputs: Mapping[str, Any], columns: torch.Tensor
) -> torch.Tensor:
    """(rows, columns, vocabulary) of a causal language model and its configuration. `inputs`: `input_ids` and
    `attention_mask`, both (rows, length), padded on the right. `columns`: the places whose next tokens are asked for,
    ascending, one at least."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    given = {**inputs, "use_cache": False, "logits_to_keep": columns}
    shared = min(common_tokens(ids, mask), int(columns[0]))
    if shared * (len(ids) - 1) >= WORTH and (cache := _continuable(config)) is not None:
        first = {"input_ids": ids[:1, :shared], "attention_mask": mask[:1, :shared]}
        forward(**first, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(len(ids))
        given |= {"input_ids": ids[:, shared:], "past_key_values": cache, "use_cache": True}
        given["logits_to_keep"] = columns - shared
    logits: torch.Tensor = forward(**given).logits
    return logits


def common_tokens(ids: torch.Tensor, mask: torch.Tensor) -> int:
    """How many tokens all rows begin with."""
    alike = (ids == ids[:1]).all(0) & mask.bool().all(0)
    return int(alike.long().cumprod(0).sum())


def _continuable(config: Any) -> DynamicCache | None:
    """An empty cache, where the model's holds all keys and values and nothing else, and adds to them without changing
    what gradients need: not so with windows that slide, or with states that are carried along."""
    cache = DynamicCache(config=config)
    return cache if all(type(layer) is DynamicLayer for layer in cache.layers) else None
