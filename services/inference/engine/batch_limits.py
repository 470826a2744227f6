"""Limits of the running rows, and how large the key and value cache may be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from shared.errors import Misconfigured

BLOCK_TOKENS: Final = 32
"""Tokens of a block of the cache."""
FREE_SHARE: Final = 0.25
"""Share of the free memory that the cache takes by default. The rest is for versions and for computing."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Limits of the running rows.

    Attributes:
        rows: Rows of one version.
        step_tokens: Tokens of one forward pass. A longer prompt takes several.
        blocks: Blocks of the key and value cache.
        groups: Blocks that a row needs for each `BLOCK_TOKENS` tokens: one for each group of layers.

    """

    rows: int
    step_tokens: int
    blocks: int
    groups: int = 1

    def blocks_of(self, length: int) -> int:
        """Return the blocks that a row of this length may take. transformers allocates up to one more than needed."""
        return (math.ceil(length / BLOCK_TOKENS) + 1) * self.groups

    @property
    def max_length(self) -> int:
        """Length of the longest row that fits, in tokens."""
        return max(0, self.blocks // self.groups - 1) * BLOCK_TOKENS


def choose_limits(
    *,
    rows: int,
    step_tokens: int,
    max_context: int,
    block_bytes: int,
    groups: int,
    free_bytes: int,
    cache_bytes: int | None,
) -> BatchLimits:
    """Return the limits for a model and a machine.

    By default the cache takes `FREE_SHARE` of the free memory, but not more than `rows` rows of the longest context.

    Args:
        rows: Rows of one version.
        step_tokens: Tokens of one forward pass.
        max_context: Limit of prompt and answer together, in tokens.
        block_bytes: Memory of a block.
        groups: Groups of layers.
        free_bytes: Free memory after the base was loaded.
        cache_bytes: Memory of the cache, if that is set.

    Raises:
        Misconfigured: if the cache cannot hold the shortest row, or is set to more than the free memory.

    """
    largest = BatchLimits(rows, step_tokens, 0, groups).blocks_of(max_context) * rows
    if cache_bytes is None:
        blocks = min(largest, int(free_bytes * FREE_SHARE) // block_bytes)
    else:
        blocks = cache_bytes // block_bytes
    if blocks * block_bytes > free_bytes:
        raise Misconfigured(
            f"LOOPWRIGHT_INFERENCE_KV_CACHE_MB: {blocks * block_bytes >> 20} MiB are more than the "
            f"{free_bytes >> 20} MiB that are free after the base was loaded"
        )
    limits = BatchLimits(rows, max(step_tokens, rows), blocks, groups)
    if limits.max_length < BLOCK_TOKENS:
        raise Misconfigured(
            f"the key and value cache has {blocks * block_bytes >> 20} MiB, too little for one short request: "
            f"set LOOPWRIGHT_INFERENCE_KV_CACHE_MB to at least {3 * groups * block_bytes >> 20 or 1}"
        )
    return limits
