"""Attention over packs (`packing.py`), as an implementation that transformers' models call in every layer.

On a GPU, PyTorch's variable-length attention computes all segments in one call. On a CPU, segments of similar size are
one padded product (`cpu/segment_attention.py`).

Whether a model isolates the sequences of a pack is decided once, by comparing its logits with those of the separate
sequences (`can_pack`). Recurrent layers, attention outside of transformers' interface, and features that the functions
here do not compute fail that comparison; such models get padded rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import structlog
import torch
from transformers import AttentionInterface

from services.trainer.training.cpu.segment_attention import attend
from services.trainer.training.packing import Layout, pack, pad
from services.trainer.training.rows import AnsweredPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKED: Final = "loopwright_packed"
"""Name of the implementation."""
TOLERANCE: Final = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 0.3}
"""Largest difference of the logits at a position that counts as rounding, relative to their spread.

Random tokens amplify rounding: 0.11 on SmolLM2-135M in bfloat16. Wrong positions or a wrong mask give about 1."""
MAX_LEAK: Final = 0.01
"""How much another sequence may change a sequence's logits, relative to the change of its own: rounding only."""
log = structlog.get_logger(__name__)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed: Layout | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention of each segment to its ancestors and itself, (1, tokens, heads, head_dim).

    Dropout on attention is not applied.

    Args:
        module: The layer; unused.
        query: (1, heads, tokens, head_dim).
        key: (1, key_heads, tokens, head_dim); heads are a multiple of key_heads.
        value: As `key`.
        attention_mask: None.
        packed: The pack's segments.
        scaling: Factor of the scores; by default 1 / sqrt(head_dim).
        sliding_window: How many tokens a token attends to, including itself; None: all before it.
        softcap: Soft limit of the scores; not supported.
        s_aux: Attention sinks; not supported.

    Raises:
        NotImplementedError: If the layer wants something that is not supported here.

    """
    if packed is None or attention_mask is not None:
        raise NotImplementedError("packed attention needs a pack, and no other mask")
    if softcap is not None or s_aux is not None:
        raise NotImplementedError("packed attention supports neither soft caps nor sinks")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window or 0
    attend_segments = _attend_on_gpu if query.is_cuda else attend
    return attend_segments(query, key, value, packed, scale, window), None


def _attend_on_gpu(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packed: Layout,
    scale: float,
    window: int,
) -> torch.Tensor:
    from torch.nn.attention import varlen  # noqa: PLC0415 - compiles nothing, but is for GPUs only

    # The kernel takes 16 bits only. Where all weights train in fp32, states may be in fp32, also under autocast.
    computed_in = next(
        (one.dtype for one in (query, key, value) if one.dtype != torch.float32), torch.bfloat16
    )
    queries, keys, values = (
        one.squeeze(0).transpose(0, 1).to(computed_in).contiguous() for one in (query, key, value)
    )
    if packed.key_index is not None:
        # The backward pass of an index adds; that of `keys[index]` sorts the index first.
        keys, values = (one.index_select(0, packed.key_index) for one in (keys, values))
    more: dict[str, Any] = {}
    if _knows_gqa(varlen.varlen_attn):
        more["enable_gqa"] = queries.shape[1] != keys.shape[1]
    attended: Any = varlen.varlen_attn(
        queries,
        keys,
        values,
        packed.query_ends,
        packed.key_ends,
        packed.max_queries,
        packed.max_keys,
        scale=scale,
        window_size=(window - 1 if window else -1, 0),
        **more,
    )
    output: torch.Tensor = attended.unsqueeze(0).to(query.dtype)
    return output


@cache
def _knows_gqa(varlen_attn: Callable[..., Any]) -> bool:
    """Return whether the function must be told of fewer key heads. PyTorch's before 2.12 need not and cannot be."""
    return "enable_gqa" in inspect.signature(varlen_attn).parameters


AttentionInterface.register(PACKED, packed_attention)


@contextmanager
def attention(model: PreTrainedModel, implementation: str) -> Iterator[None]:
    """Let `model` use an implementation of attention within a block.

    Raises `NotImplementedError` if its attention cannot be replaced.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    if model.config._attn_implementation != implementation:
        raise NotImplementedError("the attention of this model cannot be replaced")
    try:
        yield
    finally:
        model.set_attn_implementation(before or "sdpa")


def can_pack(model: PreTrainedModel) -> bool:
    """Return whether the model gives the same logits for packed sequences as for separate ones.

    Compares four short sequences, two of which begin with the same tokens. Then replaces one of them, which must not
    change the logits of the others.
    """
    embeddings: Any = model.get_input_embeddings()
    limit = min(embeddings.num_embeddings, 1000)
    generator = torch.Generator().manual_seed(0)
    lengths, shared = (24, 12, 7, 21), 16
    rows = [torch.randint(1, max(2, limit), (length,), generator=generator).tolist() for length in lengths]
    rows[3][:shared] = rows[0][:shared]
    sequences = [AnsweredPrompt(tuple(row[:1]), tuple(row[1:])) for row in rows]
    training = model.training
    model.train(False)
    try:
        with torch.no_grad():
            separate = _logits(model, pad(sequences))
            with attention(model, PACKED):
                together = _logits(model, pack(sequences, min_shared=shared))
                other = AnsweredPrompt(sequences[1].answer[-1:], sequences[1].answer[::-1])
                replaced = _logits(model, pack([sequences[0], other, *sequences[2:]], min_shared=shared))
    except (NotImplementedError, TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        log.info("model_not_packed", reason=f"{type(error).__name__}: {error}")
        return False
    finally:
        model.train(training)
    spread = separate.std().clamp_min(1e-6)
    difference = float((separate - together).square().mean(-1).sqrt().max() / spread)
    changes = (replaced - together).abs().amax(-1)
    own = slice(lengths[0] - 1, lengths[0] + lengths[1] - 2)
    others = torch.cat([changes[: own.start], changes[own.stop :]])
    leaked = float(others.max() / changes[own].max().clamp_min(1e-6))
    if difference <= TOLERANCE.get(model.dtype, 0.3) and leaked <= MAX_LEAK:
        return True
    log.info(
        "model_not_packed",
        reason="logits differ from those of separate rows",
        difference=difference,
        leaked=leaked,
    )
    return False


def _logits(model: PreTrainedModel, packed: Any) -> torch.Tensor:
    """Return the fp32 logits at the pack's selected positions, (targets, vocab)."""
    packed = packed.to(model.device)
    logits: torch.Tensor = model(**packed.inputs).logits
    return logits.flatten(0, 1)[packed.select].float()
