"""How many shipped questions a gate asks, by what it computes on. Pure.

A GPU answers all of them in little time. On a CPU the time grows with the base, so a large base answers fewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from services.trainer.core.hardware import DeviceKind
from services.trainer.core.recipe import Recipe

SKILL_TOKENS: Final = {"instructions": 80, "conversations": 40, "code": 120, "languages": 32}
"""The sets of general skills (`data/skills/`): name -> tokens of the longest answer."""
GENERAL_TOKENS: Final = 24
"""Tokens of the longest answer to a general question. The answer keys are short facts."""
REFUSAL_TOKENS: Final = 24
"""Tokens of the longest answer to a safety prompt. Refusals come first."""
ALL: Final = 10_000
"""More questions than any set has."""
SMALL_BASE: Final = 500_000_000
"""Weights of a base that is small for a CPU."""


@dataclass(frozen=True, slots=True)
class EvalSize:
    """Numbers of shipped questions at a gate.

    Attributes:
        safety: Safety prompts.
        skills: Questions of each set of skills.
        draws: Answers to each general question, and to each harmful request.
    """

    safety: int
    skills: int
    draws: int


def eval_size(recipe: Recipe, device: DeviceKind, weights: int) -> EvalSize:
    """Return how many questions the gate of a base with `weights` weights asks on a device."""
    if device == "cuda":
        default = EvalSize(ALL, ALL, 3)
    elif weights <= SMALL_BASE:
        default = EvalSize(ALL, 40, 3)
    else:
        default = EvalSize(60, 20, 1)
    return EvalSize(
        safety=recipe.gate_safety_prompts or default.safety,
        skills=recipe.gate_skill_prompts or default.skills,
        draws=recipe.gate_draws or default.draws,
    )
