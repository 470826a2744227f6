"""Sampled answers that can be compared: each prompt has its own random numbers, the same for every version.

Adding Gumbel noise to the logits and taking the largest is an exact draw from the softmax (Gumbel 1954). The noise
depends on the prompt, the draw and the position only, so two versions that predict nearly the same say the same (common
random numbers), and the size of a batch changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from transformers import LogitsProcessor

from services.trainer.core.decoding import Decoding
from shared.events import sha256

MASK: Final = 0xFFFFFFFF
BITS: Final = 23
"""Random bits of a number: with these, neither 0 nor 1 can come out in float32."""


def seed_of(prompt: Sequence[int], draw: int = 0) -> int:
    """Return the seed of a draw from a prompt, given its token ids."""
    text = " ".join(map(str, prompt)) + (f" draw {draw}" if draw else "")
    return int(sha256(text.encode())[:15], 16)


def uniform(seeds: torch.Tensor, position: int, width: int) -> torch.Tensor:
    """Return random numbers between 0 and 1, (batch, width), for seeds (batch,).

    Each is a hash of seed, position and column (lowbias32 by Chris Wellons), which is much faster than a generator for
    each row: that took longer than the model.
    """
    columns = torch.arange(width, device=seeds.device, dtype=torch.int64)
    start = _mixed((seeds ^ (seeds >> 32) ^ (position * 0x9E3779B1)) & MASK)
    hashed = _mixed((start[:, None] + columns * 0x85EBCA77) & MASK)
    return ((hashed >> (32 - BITS)).float() + 0.5) / (1 << BITS)


def _mixed(numbers: torch.Tensor) -> torch.Tensor:
    """Return 32-bit hashes of 32-bit numbers, kept in 64 bits."""
    numbers = numbers ^ (numbers >> 16)
    numbers = (numbers * 0x7FEB352D).bitwise_and_(MASK)
    numbers ^= numbers >> 15
    numbers = numbers.mul_(0x846CA68B).bitwise_and_(MASK)
    numbers ^= numbers >> 16
    return numbers


class SharedNoise(LogitsProcessor):
    """Turns greedy decoding into sampling at a temperature, for one batch of prompts."""

    def __init__(self, prompts: Sequence[Sequence[int]], decoding: Decoding) -> None:
        """Prepare the noise.

        Args:
            prompts: Token ids of the prompts, in the order of the batch.
            decoding: The draw, and a temperature above 0.
        """
        self._seeds = torch.tensor([seed_of(prompt, decoding.draw) for prompt in prompts], dtype=torch.int64)
        self._temperature = decoding.temperature
        self._position = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the logits (batch, vocabulary) divided by the temperature, with the noise of this position."""
        numbers = uniform(self._seeds.to(scores.device), self._position, scores.shape[-1])
        self._position += 1
        return scores.float() / self._temperature - (-numbers.log_()).log_()
