"""How many tokens fit into a micro-batch, from the measured memory of two. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

USABLE_MEMORY: Final = 0.9
"""Share of the memory that a step may take: other rows, other kernels and gaps between blocks take some more."""
MAX_GROWTH: Final = 8
"""How many times as large as a measured micro-batch a chosen one may be."""
ROUNDING: Final = 256
"""Chosen sizes are multiples of it, so two measurements on the same machine give the same size."""


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Memory of one forward and backward pass.

    Attributes:
        tokens: Tokens that went through the model at once.
        peak_bytes: Most bytes that were allocated at a time, weights included.

    """

    tokens: int
    peak_bytes: int


def fitting_tokens(
    small: MemoryUse,
    large: MemoryUse,
    *,
    available_bytes: int,
    reserved_bytes: int,
    longest_row: int,
    limit: int,
) -> int:
    """Return the size of micro-batches in tokens, at least that of the longest row.

    Memory grows linearly with the tokens: weights and gradients are constant, activations are not.

    Args:
        small: A measurement.
        large: One with more tokens.
        available_bytes: Memory that this process can allocate in all.
        reserved_bytes: What a step needs besides, such as the optimiser's state.
        longest_row: Tokens of the longest row, which go through the model at once in any case.
        limit: Most tokens that are of use.

    """
    most = min(limit, MAX_GROWTH * large.tokens)
    per_token = (large.peak_bytes - small.peak_bytes) / (large.tokens - small.tokens)
    if per_token > 0:
        constant = small.peak_bytes - per_token * small.tokens
        most = min(most, int((USABLE_MEMORY * available_bytes - reserved_bytes - constant) / per_token))
    return max(longest_row, most // ROUNDING * ROUNDING if most > ROUNDING else most)
