"""The attention of packs on a GPU, with a kernel that computes the same on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention

from services.trainer.training.cpu.segment_attention import attend
from services.trainer.training.packed_attention import _attend_on_gpu
from services.trainer.training.packing import GPU_MIN_SHARED, Layout, pack, pack_for_gpu
from services.trainer.training.rows import AnsweredPrompt

PROMPT = tuple(range(1, 40))
SEQUENCES = [AnsweredPrompt(PROMPT, (50 + n, 60, *range(n))) for n in range(4)]


def kernel(*given: Any, scale: float, window_size: tuple[int, int]) -> torch.Tensor:
    """Compute variable-length attention as PyTorch 2.11's kernel does: 16 bits, causal from the last token."""
    queries, keys, values, query_ends, key_ends, max_queries, max_keys = given
    assert queries.dtype == keys.dtype == values.dtype == torch.bfloat16
    assert query_ends.dtype == key_ends.dtype == torch.int32
    parts = []
    for number in range(len(query_ends) - 1):
        query = queries[query_ends[number] : query_ends[number + 1]].transpose(0, 1)
        key, value = (one[key_ends[number] : key_ends[number + 1]].transpose(0, 1) for one in (keys, values))
        length, total = query.shape[1], key.shape[1]
        assert length <= max_queries
        assert total <= max_keys
        distance = torch.arange(total - length, total)[:, None] - torch.arange(total)
        left, right = window_size
        visible = (distance >= -right) & (distance <= left if left >= 0 else distance >= 0)
        attended = scaled_dot_product_attention(
            *(one.float().unsqueeze(0) for one in (query, key, value)),
            attn_mask=visible,
            scale=scale,
            enable_gqa=True,
        )
        parts.append(attended.squeeze(0).transpose(0, 1))
    return torch.cat(parts).to(queries.dtype)


def newer_kernel(*given: Any, enable_gqa: bool = False, **named: Any) -> torch.Tensor:
    """Compute the same as PyTorch 2.12 and later, which want to be told of fewer key heads."""
    assert enable_gqa == (given[0].shape[1] != given[1].shape[1])
    return kernel(*given, **named)


def states(tokens: int, heads: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(1, heads, tokens, 8).to(dtype).requires_grad_()


def layout_of(min_shared: int) -> tuple[Layout, int]:
    inputs = pack(SEQUENCES, min_shared=min_shared).inputs
    return inputs["packed"], inputs["input_ids"].numel()


@pytest.mark.parametrize("varlen_attn", [kernel, newer_kernel])
@pytest.mark.parametrize(("min_shared", "window"), [(0, 0), (16, 0), (0, 9)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gpu_attention_equals_that_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
    varlen_attn: Callable[..., torch.Tensor],
    min_shared: int,
    window: int,
    dtype: torch.dtype,
) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    torch.manual_seed(1)
    layout, tokens = layout_of(min_shared)
    given = [states(tokens, heads, dtype) for heads in (4, 2, 2)]
    found, wanted = (function(*given, layout, 0.3, window).float() for function in (_attend_on_gpu, attend))
    assert found.shape == wanted.shape == (1, tokens, 4, 8)
    torch.testing.assert_close(found, wanted, rtol=0.03, atol=0.03)
    for gradient, other in zip(
        *(torch.autograd.grad(one.square().sum(), given) for one in (found, wanted)), strict=True
    ):
        assert (gradient.float() - other.float()).norm() < 0.03 * other.float().norm()


def test_beginnings_are_shared_on_a_gpu_only_if_that_saves_much() -> None:
    marks = [AnsweredPrompt((1, 2, 3, *range(n, n + 60)), (5, 6)) for n in range(10, 60)]
    assert pack(marks).inputs["input_ids"].numel() < sum(len(one.ids) for one in marks)
    assert pack_for_gpu(marks).inputs["packed"].key_index is None, "3 of 65 tokens"
    packed = pack_for_gpu(SEQUENCES)
    assert packed.inputs["input_ids"].numel() < (1 - GPU_MIN_SHARED) * packed.tokens
