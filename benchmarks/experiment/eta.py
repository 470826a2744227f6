"""Estimates how long the remaining arms take. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.experiment.arms import Arm, Scenario, Sizes
from services.trainer.core.eval_size import SKILL_TOKENS, SMALL_BASE, eval_size
from services.trainer.core.recipe import Recipe
from services.trainer.core.resolved_recipe import ROWS_PER_STEP

TRAINED_SHARE = {"facts": 0.55, "style": 0.75}
"""Approximate share of the feedback that trains. The rest is held out, reserved or repeated."""
TRAINED_SHARE_SHUFFLED = 0.4
"""Shuffled corrections contradict each other, so more of them are quarantined."""
STARTUP_S = 30.0
"""Seconds per arm for starting processes and loading the base three times."""
LIKELIHOODS = 250
"""Texts whose likelihood the gate computes. Each takes about as long as generating three tokens."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Measured speed of this machine: seconds per training step, and generated tokens per second."""

    sft_step_s: float
    kto_step_s: float
    tokens_per_s: float


def estimate_seconds(
    left: Sequence[Arm],
    done: Sequence[Mapping[str, Any]],
    sizes: Sizes,
    recipes: Mapping[Scenario, Recipe],
    speed: Speed,
    missing_prompts: int,
) -> float:
    """Return the estimated time of the arms in `left`, in seconds.

    An arm takes as long as the same arm with other seeds took, or else what the machine's speed predicts.

    Args:
        left: Arms that have no result yet.
        done: Results of the other arms.
        sizes: Sizes of the experiment.
        recipes: Recipe of each scenario.
        speed: Measured speed.
        missing_prompts: Number of shipped prompts that the base has not answered yet.
    """
    known: dict[tuple[str, str], list[float]] = {}
    for result in done:
        known.setdefault((result["world"], result["arm"]), []).append(result["seconds"])
    total = missing_prompts * next(iter(recipes.values())).replay_new_tokens / speed.tokens_per_s
    for arm in left:
        seconds = known.get((arm.scenario, arm.name))
        total += statistics.fmean(seconds) if seconds else _predict(arm, sizes, recipes[arm.scenario], speed)
    return total


def _predict(arm: Arm, sizes: Sizes, recipe: Recipe, speed: Speed) -> float:
    if arm.scenario == "facts":
        feedback = sizes.facts * 10
        measured_tokens = sizes.facts * 3 * sizes.answer_tokens
        base_tokens = sizes.facts * 13 * sizes.answer_tokens
        step_s = speed.sft_step_s
    else:
        feedback = sizes.questions * sizes.samples
        measured_tokens = sizes.held_questions * sizes.measured * sizes.sample_tokens
        base_tokens = feedback * sizes.sample_tokens + measured_tokens
        step_s = speed.kto_step_s
    if not arm.trains:
        return STARTUP_S / 3 + base_tokens / speed.tokens_per_s
    share = TRAINED_SHARE_SHUFFLED if arm.name == "shuffled" else TRAINED_SHARE[arm.scenario]
    training_s = share * feedback * recipe.epochs / ROWS_PER_STEP * step_s
    training_s += recipe.replay_prompts / ROWS_PER_STEP * speed.sft_step_s
    size = eval_size(recipe, "cpu", SMALL_BASE)
    gate_tokens = recipe.gate_eval_prompts * 24 + min(size.safety, 300) * recipe.replay_new_tokens
    gate_tokens += size.skills * sum(SKILL_TOKENS.values())
    gate_tokens += 3 * LIKELIHOODS + (80 * recipe.gate_answer_tokens if arm.scenario == "facts" else 0)
    return STARTUP_S + training_s + (gate_tokens + measured_tokens) / speed.tokens_per_s
