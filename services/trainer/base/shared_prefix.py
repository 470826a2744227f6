"""A language model's answers computed where they are asked for, and what all rows begin with once for all of them.

The conversations of a line begin alike: with its system prompt, or with the one that the chat template sets. Of a batch
of rows that is the same tokens, keys and values again and again. Here they go through the model once; the rest of each
row then follows on the keys and values of it, as an answer that is generated follows on its prompt. Likelihoods and
gradients are those of the whole rows, to rounding, and rows do not see each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

Forward: TypeAlias = Callable[..., Any]
WORTH: Final = 64
"""Tokens to be saved at least: a pass over few tokens costs as much as one over some dozens."""


def logits_at(model: Any, forward: Forward, inputs: Mapping[str, Any], places: torch.Tensor) -> torch.Tensor:
    """What the causal language model expects after each of `places`: (places, vocabulary), row by row.

    `forward`: how it is asked, itself or what stands before it. `inputs`: `input_ids` and `attention_mask`, both (rows,
    length), padded on the right. `places`: (rows, length) or shorter, true where it is asked, once at least."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    columns = places.any(0).nonzero().squeeze(1)
    given = {**inputs, "use_cache": False, "logits_to_keep": columns}
    shared = min(common_tokens(ids, mask), int(columns[0]))
    if shared * (len(ids) - 1) >= WORTH and (cache := _continuable(model.config)) is not None:
        first = {"input_ids": ids[:1, :shared], "attention_mask": mask[:1, :shared]}
        forward(**first, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(len(ids))
        given |= {"input_ids": ids[:, shared:], "past_key_values": cache, "use_cache": True}
        given["logits_to_keep"] = columns - shared
    return _asked(model.get_output_embeddings(), forward, given, places[:, columns])


def _asked(
    head: torch.nn.Module, forward: Forward, given: Mapping[str, Any], places: torch.Tensor
) -> torch.Tensor:
    """Rows ask at unlike columns: the head, a good part of a small model, is applied where they ask alone."""
    hook = head.register_forward_pre_hook(lambda _, hidden: (hidden[0][places].unsqueeze(0),))
    try:
        logits: torch.Tensor = forward(**given).logits
    finally:
        hook.remove()
    return logits.squeeze(0)


def common_tokens(ids: torch.Tensor, mask: torch.Tensor) -> int:
    """How many tokens all rows begin with."""
    alike = (ids == ids[:1]).all(0) & mask.bool().all(0)
    return int(alike.long().cumprod(0).sum())


def _continuable(config: Any) -> DynamicCache | None:
    """An empty cache, where the model's holds all keys and values and nothing else, and adds to them without changing
    what gradients need: not so with windows that slide, or with states that are carried along."""
    cache = DynamicCache(config=config)
    return cache if all(type(layer) is DynamicLayer for layer in cache.layers) else None
