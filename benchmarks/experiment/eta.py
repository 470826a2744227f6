"""How long what is left will take: by what such arms took here before, else by the machine's measured speed. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.experiment.arms import Arm, Sizes, World
from services.trainer.core.recipe import Recipe

TRAINING_SHARE = {"facts": 0.55, "style": 0.75}
"""Of what users say, about so much trains: the rest measures, is reserved, or was said before."""
SHUFFLED_SHARE = 0.4
"""Of what contradicts itself more is held."""
STARTS_S = 30.0
"""Processes, their libraries, and the base, three times an arm."""
LIKELIHOODS = 250
"""Texts that the gate reads with both versions, each about as long as three tokens are in being made."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds a step, and tokens a second of answers."""

    sft_step_s: float
    kto_step_s: float
    tokens_per_s: float


def seconds(
    left: Sequence[Arm],
    done: Sequence[Mapping[str, Any]],
    sizes: Sizes,
    recipe: Mapping[World, Recipe],
    speed: Speed,
    shipped_missing: int,
) -> float:
    """`recipe`: by world. `shipped_missing`: prompts that the base was not asked yet."""
    seen: dict[tuple[str, str], list[float]] = {}
    for one in done:
        seen.setdefault((one["world"], one["arm"]), []).append(one["seconds"])
    total = shipped_missing * next(iter(recipe.values())).replay_new_tokens / speed.tokens_per_s
    for arm in left:
        known = seen.get((arm.world, arm.name))
        total += statistics.fmean(known) if known else predicted(arm, sizes, recipe[arm.world], speed)
    return total


def predicted(arm: Arm, sizes: Sizes, recipe: Recipe, speed: Speed) -> float:
    if arm.world == "facts":
        said, asked = sizes.facts * 10, sizes.facts * 3 * sizes.answer_tokens
        base = sizes.facts * 13 * sizes.answer_tokens
        step_s = speed.sft_step_s
    else:
        said, asked = (
            sizes.questions * sizes.samples,
            sizes.held_questions * sizes.measured * sizes.sample_tokens,
        )
        base = said * sizes.sample_tokens + asked
        step_s = speed.kto_step_s
    if not arm.trains:
        return STARTS_S / 3 + base / speed.tokens_per_s
    share = SHUFFLED_SHARE if arm.name == "shuffled" else TRAINING_SHARE[arm.world]
    steps = share * said * recipe.epochs / recipe.batch_size * step_s
    steps += recipe.replay_prompts / recipe.batch_size * speed.sft_step_s
    gate = recipe.gate_eval_prompts * 24 + recipe.gate_safety_prompts * recipe.replay_new_tokens
    gate += 3 * LIKELIHOODS + (80 * recipe.gate_new_tokens if arm.world == "facts" else 0)
    return STARTS_S + steps + (gate + asked) / speed.tokens_per_s
