"""How answers are decoded: greedily, or sampled, several times if one answer says too little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from services.trainer.core.recipe import Recipe

DRAW_TEMPERATURE: Final = 0.4
"""Temperature of repeated answers if the gate's other answers are greedy. Measured in `docs/decisions/gate.md`."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How one answer to each prompt is decoded.

    Attributes:
        temperature: 0 for greedy answers, else that of the sampling.
        draw: Which of several sampled answers. Each has random numbers of its own, which all versions share.
    """

    temperature: float = 0.0
    draw: int = 0

    @property
    def name(self) -> str:
        """A short name, for files; empty for greedy answers."""
        if not self.temperature:
            return ""
        return f"t{self.temperature:g}" + (f"-{self.draw}" if self.draw else "")

    @property
    def description(self) -> str:
        """The name in words."""
        if not self.temperature:
            return "greedy"
        return f"temperature {self.temperature:g}" + (f", draw {self.draw}" if self.draw else "")


GREEDY: Final = Decoding()


def at_gate(recipe: Recipe) -> Decoding:
    """Return how the gate decodes answers that are given once."""
    return Decoding(recipe.gate_temperature)


def draw_at_gate(recipe: Recipe, draw: int) -> Decoding:
    """Return how the gate decodes one of the repeated answers, counted from 1."""
    return Decoding(recipe.gate_temperature or DRAW_TEMPERATURE, draw)
