"""Attention over transformers' paged key and value cache, without the work between different requests. Imports torch.

transformers offers two kinds of attention for continuous batching: flash attention, for some GPUs, and `paged|sdpa`.
The latter computes the scores of each row's query with the keys of all rows and masks most of them, so its cost grows
with the square of the batch. Here the rows that generate are computed as one padded batch, and each prompt by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.generation.continuous_batching import PagedAttentionCache

PAGED_ATTENTION: Final = "paged|rows"
"""Name of this attention; transformers expects `paged|`."""
PLAN: Final = "attention_plan"
"""Argument of the model's forward pass that takes the `AttentionPlan` to each layer."""


@dataclass(frozen=True, slots=True)
class PromptPart:
    """Tokens of one prompt in a step: query positions `start` to `end`, cached keys `key_start` to `key_end`."""

    start: int
    end: int
    key_start: int
    key_end: int


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """What the layers of one step have in common.

    Attributes:
        rows: The first queries, one for each row that generates.
        keys: Places of their keys in the cache, (rows * longest,); a shorter row is padded.
        mask: Which of the keys are a row's own, (rows, 1, 1, longest); None if no row is padded.
        parts: The other queries.

    """

    rows: int
    keys: torch.Tensor | None
    mask: torch.Tensor | None
    parts: tuple[PromptPart, ...]


def plan_attention(arguments: Mapping[str, Any]) -> AttentionPlan:
    """Return the plan of a step, given the arguments that continuous batching passes to the model."""
    ends, key_ends = arguments["cu_seq_lens_q"].tolist(), arguments["cu_seq_lens_k"].tolist()
    cached = arguments["read_index"][0]
    count = len(ends) - 1
    rows = 0
    if len(cached):
        while rows < count and ends[rows + 1] - ends[rows] == 1:
            rows += 1
    parts = tuple(PromptPart(ends[i], ends[i + 1], key_ends[i], key_ends[i + 1]) for i in range(rows, count))
    if not rows:
        return AttentionPlan(0, None, None, parts)
    lengths = arguments["cu_seq_lens_k"][: rows + 1].diff()
    longest = max(key_ends[i + 1] - key_ends[i] for i in range(rows))
    own = torch.arange(longest, device=lengths.device) < lengths[:, None]
    keys = cached.new_full((rows, longest), arguments["cache"].read_trash_index)
    keys.masked_scatter_(own, cached[: key_ends[rows]])
    padded = rows * longest > key_ends[rows]
    return AttentionPlan(rows, keys.flatten(), own[:, None, None] if padded else None, parts)


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """Store the new keys and values, and return the attention of all queries, (1, queries, heads, head size).

    Args:
        module: The layer.
        query: Queries of all rows, (1, heads, queries, head size).
        key: New keys, (1, key heads, queries, head size).
        value: New values, like `key`.
        attention_mask: Ignored; the plan has what is needed.
        scaling: Factor of the scores.
        arguments: What continuous batching and `PLAN` pass to each layer.

    """
    plan: AttentionPlan = arguments[PLAN]
    cache: PagedAttentionCache = arguments["cache"]
    group, layer = cache.layer_index_to_group_indices[cast(int, module.layer_idx)]
    keys, values = cache.key_cache[layer], cache.value_cache[layer]
    written = arguments["write_index"][group]
    keys.index_copy_(0, written, key[0].transpose(0, 1))
    values.index_copy_(0, written, value[0].transpose(0, 1))
    outputs = []
    if plan.keys is not None:
        outputs.append(_attend_rows(query, keys, values, plan, scaling))
    for part in plan.parts:
        new = part.end - part.start
        part_query = query[:, :, part.start : part.end]
        if part.key_end - part.key_start == new:
            part_keys, part_values = key[:, :, part.start : part.end], value[:, :, part.start : part.end]
            mask = None
        else:
            places = arguments["read_index"][group][part.key_start : part.key_end]
            part_keys, part_values = (
                cached.index_select(0, places).transpose(0, 1)[None] for cached in (keys, values)
            )
            mask = torch.ones(new, len(places), dtype=torch.bool, device=query.device).tril(len(places) - new)
        output = scaled_dot_product_attention(
            part_query,
            part_keys,
            part_values,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        outputs.append(output[0].transpose(0, 1))
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs))[None], None


def _attend_rows(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    plan: AttentionPlan,
    scaling: float | None,
) -> torch.Tensor:
    """Return the attention of the rows that generate, (rows, heads, head size).

    The heads that share a key head are the queries of one sequence, so no key is repeated for them.
    """
    _, heads, _, size = query.shape
    key_heads = keys.shape[1]
    assert plan.keys is not None
    row_query = query[0, :, : plan.rows].view(key_heads, heads // key_heads, plan.rows, size)
    row_keys, row_values = (
        cached.index_select(0, plan.keys).view(plan.rows, -1, key_heads, size).transpose(1, 2)
        for cached in (keys, values)
    )
    output = scaled_dot_product_attention(
        row_query.permute(2, 0, 1, 3), row_keys, row_values, attn_mask=plan.mask, scale=scaling
    )
    return output.reshape(plan.rows, heads, size)


def attention_for(model: PreTrainedModel) -> str:
    """Return the name of the attention that a model needs.

    It is `paged_attention` if all layers attend to the whole context, and one of transformers' otherwise.

    Raises:
        ValueError: if continuous batching would ignore a part of the model's attention.

    """
    config = model.config.get_text_config()
    if getattr(config, "attn_logit_softcapping", None) is not None:
        raise ValueError("its capped attention scores are not supported; serve it with vLLM")
    if not model._supports_sdpa:
        return "paged|eager"
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    plain = kinds == {"full_attention"} and getattr(config, "sliding_window", None) is None
    return PAGED_ATTENTION if plain else "paged|sdpa"


AttentionInterface.register(PAGED_ATTENTION, paged_attention)
