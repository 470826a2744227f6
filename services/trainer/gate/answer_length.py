"""How long answers at the gate may be: long enough to show the facts of what users wrote. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from services.trainer.core.recipe import GATE_TOKENS, Recipe

COVERED_SHARE = 0.95
"""Share of the reference answers that are no longer than an answer may be."""


def with_answer_length(recipe: Recipe, references: Sequence[int]) -> Recipe:
    """Return the recipe with the longest answer at the gate, derived if the recipe leaves it open.

    Args:
        recipe: The recipe of the run.
        references: Lengths of the reference answers in tokens: corrections, liked answers, golden references.
    """
    if recipe.gate_new_tokens is not None:
        return recipe
    least, most = GATE_TOKENS
    ordered = sorted(references)
    covering = ordered[math.ceil(COVERED_SHARE * len(ordered)) - 1] if ordered else least
    return recipe.model_copy(update={"gate_new_tokens": max(least, min(covering, most))})
