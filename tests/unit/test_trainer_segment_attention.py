"""Attention of a pack on a CPU equals that of its sequences, however its segments are grouped."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from services.trainer.training.cpu import segment_attention
from services.trainer.training.packing import Layout, Segment, pack
from services.trainer.training.rows import AnsweredPrompt

HEAD_DIM = 4
ROWS = st.lists(st.lists(st.integers(1, 2), min_size=2, max_size=20), min_size=1, max_size=8)
ROUNDING = 1e-5
"""Weights are computed in fp32."""
LIMITS = ("MAX_EAGER_KEYS", "MAX_PADDING", "MAX_GROUP_SCORES")


def layout_of(rows: list[list[int]], min_shared: int) -> Layout:
    packed = pack([AnsweredPrompt(tuple(row[:1]), tuple(row[1:])) for row in rows], min_shared=min_shared)
    layout: Layout = packed.inputs["packed"]
    return layout


def states(heads: int, tokens: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, heads, tokens, HEAD_DIM, generator=generator, dtype=torch.float64).requires_grad_()


def segment_by_segment(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, window: int
) -> torch.Tensor:
    """Return the attention of each segment, computed alone by PyTorch."""
    parts = []
    for one in layout.segments:
        tokens = [token for part in one.ancestors for token in part] + list(range(one.start, one.end))
        count, total = one.end - one.start, len(tokens)
        distance = torch.arange(total - count, total)[:, None] - torch.arange(total)[None]
        visible = (distance >= 0) & ((distance < window) | (window == 0))
        parts.append(
            scaled_dot_product_attention(
                query[:, :, one.start : one.end],
                key[:, :, tokens],
                value[:, :, tokens],
                visible,
                scale=0.5,
                enable_gqa=True,
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2)


@given(
    ROWS,
    st.integers(0, 8),
    st.sampled_from([(1, 1), (3, 1), (4, 2), (2, 2)]),
    st.sampled_from([0, 1, 5]),
    st.tuples(
        st.sampled_from([2, 12, 1000]), st.sampled_from([0, 40, 10**6]), st.sampled_from([1, 100, 10**6])
    ),
)
def test_grouped_attention_and_its_gradients_equal_separate_ones(
    rows: list[list[int]],
    min_shared: int,
    heads: tuple[int, int],
    window: int,
    limits: tuple[int, int, int],
) -> None:
    layout = layout_of(rows, min_shared)
    tokens = layout.segments[-1].end
    inputs = (states(heads[0], tokens, 0), states(heads[1], tokens, 1), states(heads[1], tokens, 2))
    with pytest.MonkeyPatch.context() as patch:
        for name, limit in zip(LIMITS, limits, strict=True):
            patch.setattr(segment_attention, name, limit)
        found = segment_attention.attend(*inputs, layout, 0.5, window)
    wanted = segment_by_segment(*inputs, layout, window)
    torch.testing.assert_close(found, wanted, rtol=ROUNDING, atol=ROUNDING)
    direction = states(heads[0], tokens, 9).detach().transpose(1, 2)
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, direction),
        torch.autograd.grad(wanted, inputs, direction),
        rtol=ROUNDING,
        atol=ROUNDING,
    )


def test_short_segments_are_one_group_and_a_much_longer_one_another() -> None:
    lengths = [30, 35, 28, 32, 600]
    ends = [sum(lengths[: number + 1]) for number in range(len(lengths))]
    segments = [Segment(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    grouped = segment_attention.group_segments(segments, ends[-1], heads=3, key_heads=1, window=0)
    assert [group.segments for group in grouped.groups] == [4, 1]
    assert not grouped.alone


def test_groups_are_prepared_once_for_all_layers() -> None:
    layout = layout_of([[1, 2, 3], [2, 3, 1]], 0)
    query, key = states(2, 6, 0), states(2, 6, 1)
    segment_attention.attend(query, key, key, layout, 0.5, 0)
    prepared = layout.prepared[2, 2, 0]
    segment_attention.attend(query, key, key, layout, 0.5, 0)
    assert layout.prepared == {(2, 2, 0): prepared}
