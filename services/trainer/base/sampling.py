"""Sampled answers that can be compared: each prompt has its own random numbers, the same for every version.

Adding Gumbel noise to the logits and taking the largest is an exact draw from the softmax (Gumbel 1954). The noise
depends on the prompt and the position only, so two versions that predict nearly the same say the same (common random
numbers), and the size of a batch changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor

from shared.events import sha256


def seed_of(prompt: Sequence[int]) -> int:
    """Return the seed of a prompt, given its token ids."""
    return int(sha256(" ".join(map(str, prompt)).encode())[:15], 16)


class SharedNoise(LogitsProcessor):
    """Turns greedy decoding into sampling at a temperature, for one batch of prompts."""

    def __init__(self, prompts: Sequence[Sequence[int]], temperature: float) -> None:
        """Prepare the noise.

        Args:
            prompts: Token ids of the prompts, in the order of the batch.
            temperature: The temperature, above 0.
        """
        self._seeds = [seed_of(prompt) for prompt in prompts]
        self._temperature = temperature
        self._generators: list[torch.Generator] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the logits (batch, vocabulary) divided by the temperature, with the noise of this position."""
        if not self._generators:
            self._generators = [torch.Generator(scores.device).manual_seed(seed) for seed in self._seeds]
        width = scores.shape[-1]
        exponential = torch.stack(
            [
                torch.empty(width, device=scores.device).exponential_(generator=generator)
                for generator in self._generators
            ]
        )
        return scores.float() / self._temperature - exponential.log()
