"""Attention of a pack on a CPU: short segments are computed in groups.

A segment of a chat takes a CPU hardly longer than starting the operations for it, and each of them waits for all
threads. So segments of similar size are gathered into one padded product. Segments with many keys are computed alone by
PyTorch's fused attention: its backward pass is slow on a CPU, but the memory of the scores grows with the square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch.nn.functional import scaled_dot_product_attention

from services.trainer.training.packing import Layout, Segment

MAX_EAGER_KEYS: Final = 1024
"""Keys of a segment up to which its scores are kept for the backward pass."""
MAX_PADDING: Final = 8192
"""Scores of padding per head that cost as much as one more group; measured with 9 heads, forward and backward."""
MAX_GROUP_SCORES: Final = 2**20
"""Largest number of scores of a group, per head."""


@dataclass(frozen=True, slots=True)
class SegmentGroup:
    """Segments that are computed in one product; the shorter ones are padded."""

    segments: int
    queries: torch.Tensor
    """(key_heads * segments * heads_per_key * max_queries,), int64: rows of (heads * tokens, head_dim)."""
    keys: torch.Tensor
    """(key_heads * segments * max_keys,), int64: rows of (key_heads * tokens, head_dim)."""
    hidden: torch.Tensor
    """(segments, 1, max_queries, max_keys), boolean: keys that a query does not see."""


@dataclass(frozen=True, slots=True)
class SegmentGroups:
    """All segments of a pack for layers with the same numbers of heads and the same window."""

    groups: tuple[SegmentGroup, ...]
    alone: tuple[tuple[Segment, torch.Tensor, torch.Tensor], ...]
    """Long segments, each with the tokens of its keys (keys,) and what its queries see, (queries, keys)."""
    outputs: torch.Tensor
    """(tokens * heads,), int64: the row of each output in the concatenated outputs of groups and long segments."""


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: Layout, scale: float, window: int
) -> torch.Tensor:
    """Return the attention of each segment to its ancestors and itself, (1, tokens, heads, head_dim).

    Args:
        query: (1, heads, tokens, head_dim).
        key: (1, key_heads, tokens, head_dim).
        value: As `key`.
        packed: The pack's segments.
        scale: Factor of the scores.
        window: How many tokens a token attends to, including itself; 0: all before it.

    """
    _, heads, tokens, width = query.shape
    key_heads = key.shape[1]
    name = (heads, key_heads, window)
    groups: SegmentGroups | None = packed.prepared.get(name)
    if groups is None:
        groups = packed.prepared[name] = group_segments(packed.segments, tokens, heads, key_heads, window)
    queries, keys, values = (one.reshape(-1, width) for one in (query, key, value))
    parts = [_attend_group(queries, keys, values, group, key_heads, scale) for group in groups.groups]
    for segment, key_tokens, visible in groups.alone:
        attended = scaled_dot_product_attention(
            query[:, :, segment.start : segment.end],
            key.index_select(2, key_tokens),
            value.index_select(2, key_tokens),
            attn_mask=visible,
            scale=scale,
            enable_gqa=heads != key_heads,
        )
        parts.append(attended.reshape(-1, width))
    outputs = parts[0] if len(parts) == 1 else torch.cat(parts)
    return outputs.index_select(0, groups.outputs).view(1, tokens, heads, width)


def _attend_group(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    group: SegmentGroup,
    key_heads: int,
    scale: float,
) -> torch.Tensor:
    """Return the outputs of a group in the order of `group.queries`, (queries, head_dim)."""
    width = query.shape[-1]
    batch = key_heads * group.segments
    # The query heads of one key head are more rows of the same product, so keys are not repeated.
    queries = query.index_select(0, group.queries).view(batch, -1, width)
    keys = key.index_select(0, group.keys).view(batch, -1, width)
    values = value.index_select(0, group.keys).view(batch, -1, width)
    scores = torch.bmm(queries, keys.transpose(1, 2)) * scale
    shape = scores.shape
    scores = scores.view(key_heads, group.segments, -1, *group.hidden.shape[-2:])
    weights = scores.masked_fill(group.hidden, float("-inf")).softmax(-1, dtype=torch.float32)
    return torch.bmm(weights.to(query.dtype).view(shape), values).view(-1, width)


def group_segments(
    segments: Sequence[Segment], tokens: int, heads: int, key_heads: int, window: int
) -> SegmentGroups:
    """Return the segments of a pack in groups of similar size, with the indices of their queries and keys.

    Args:
        segments: They cover the tokens of the pack.
        tokens: Number of tokens of the pack.
        heads: Query heads.
        key_heads: Key heads; `heads` is a multiple.
        window: See `attend`.

    """
    groups, before = [], 0
    outputs = torch.empty((tokens, heads), dtype=torch.long)
    per_key = heads // key_heads
    head = torch.arange(heads)
    key_head = torch.arange(key_heads)[:, None, None]
    for members in _similar_sizes([one for one in segments if _keys(one) <= MAX_EAGER_KEYS]):
        count = len(members)
        longest, most_keys = max(map(_queries, members)), max(map(_keys, members))
        query_tokens = torch.zeros((count, longest), dtype=torch.long)
        key_tokens = torch.zeros((count, most_keys), dtype=torch.long)
        hidden = torch.ones((count, 1, longest, most_keys), dtype=torch.bool)
        for number, one in enumerate(members):
            own, total = _queries(one), _keys(one)
            query_tokens[number, :own] = torch.arange(one.start, one.end)
            key_tokens[number, :total] = _key_tokens(one)
            visible = _visible(own, total, window)
            hidden[number, 0, :own, :total] = ~visible
            hidden[number, 0, own:, :total] = ~visible[-1]  # padding sees something, or its weights are NaN
            place = before + ((head // per_key * count + number) * per_key + head % per_key) * longest
            outputs[one.start : one.end] = place + torch.arange(own)[:, None]
        groups.append(
            SegmentGroup(
                count,
                (head.view(key_heads, 1, per_key, 1) * tokens + query_tokens[:, None]).flatten(),
                (key_head * tokens + key_tokens).flatten(),
                hidden,
            )
        )
        before += heads * count * longest
    alone = []
    for one in segments:
        if _keys(one) > MAX_EAGER_KEYS:
            own = _queries(one)
            outputs[one.start : one.end] = before + head * own + torch.arange(own)[:, None]
            alone.append((one, _key_tokens(one), _visible(own, _keys(one), window)))
            before += heads * own
    return SegmentGroups(tuple(groups), tuple(alone), outputs.flatten())


def _similar_sizes(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Return segments in groups. A segment joins a group if that pads fewer scores than another group would cost."""
    groups: list[list[Segment]] = []
    longest = most_keys = 0
    for one in sorted(segments, key=lambda one: (_keys(one), _queries(one))):
        own, total = _queries(one), _keys(one)
        if groups:
            count = len(groups[-1])
            joined = (count + 1) * max(longest, own) * max(most_keys, total)
            if (
                joined - count * longest * most_keys - own * total <= MAX_PADDING
                and joined <= MAX_GROUP_SCORES
            ):
                groups[-1].append(one)
                longest, most_keys = max(longest, own), max(most_keys, total)
                continue
        groups.append([one])
        longest, most_keys = own, total
    return groups


def _queries(segment: Segment) -> int:
    return segment.end - segment.start


def _keys(segment: Segment) -> int:
    return segment.context + segment.end - segment.start


def _key_tokens(segment: Segment) -> torch.Tensor:
    """Return the tokens that a segment attends to, (keys,)."""
    parts = (*segment.ancestors, range(segment.start, segment.end))
    return torch.cat([torch.arange(part.start, part.stop) for part in parts])


def _visible(queries: int, keys: int, window: int) -> torch.Tensor:
    """Return which keys each token of a segment sees, (queries, keys), boolean."""
    distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    return (distance >= 0) & (distance < window) if window else distance >= 0
