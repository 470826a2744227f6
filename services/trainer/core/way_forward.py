"""What follows by itself from a verdict that did not promote: another gate, another run, or nothing. Pure.

A gate with too little feedback is repeated once enough has arrived. A version that users prefer, but that lost general
ability, is trained again with more replay. Where neither could settle anything, the text says what a person can do.
"""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Final, Literal

from services.trainer.core.recipe import Recipe

GROWTH: Final = 0.1
"""A gate is repeated only with more new items than this share of those it had: each repetition needs more evidence."""
MORE_REPLAY: Final = 3.0
"""Factor of the weight of replay in a run that repeats another one."""
MORE_SHARE: Final = 2.0
"""Factor of the share of replay, where replay has no weight of its own."""
MAX_SHARE: Final = 0.9
_GENERAL: Final = ("general_", "skill", "safety_", "lm_eval_")
GENERAL_FIGURES: Final = (*_GENERAL, *(f"base_{name}" for name in _GENERAL))
"""Beginnings of the names of figures about what the base could do before any feedback, which replay keeps."""
MAX_LOSS: Final = 300
"""Maximum length of a loss in a reason, in characters."""


@dataclass(frozen=True, slots=True)
class NewestVersion:
    """The newest version of a line, the report of its last gate, and what has happened since.

    Attributes:
        name: The version.
        verdict: Verdict of its last gate.
        reasons: Reasons of the verdict.
        items: Held-out items of the gate.
        more_items: About how many more would decide; None if no number would.
        more_users: How many of them must come from other users.
        new_items: Held-out items that have arrived since, at most.
        new_users: Held-out users with the first feedback since.
        gates: How often the trainer gated the version again by itself.
        is_better: Whether it won the vote against stable.
        lost: Names of the figures whose rule does not hold.
        runs: How often its data was trained again by itself.
        recipe: Recipe of its run.

    """

    name: str
    verdict: Literal["passed", "failed", "inconclusive"]
    reasons: tuple[str, ...] = ()
    items: int = 0
    more_items: int | None = None
    more_users: int = 0
    new_items: int = 0
    new_users: int = 0
    gates: int = 0
    is_better: bool = False
    lost: Set[str] = frozenset()
    runs: int = 0
    recipe: Recipe = field(default_factory=Recipe)

    @property
    def items_needed(self) -> int | None:
        """How many more held-out items start another gate; None if more items decide nothing."""
        if self.verdict != "inconclusive" or self.more_items is None:
            return None
        return max(self.more_items, math.ceil(self.items * GROWTH), 1)

    @property
    def lost_only_general_ability(self) -> bool:
        """Whether users prefer it to stable, and it only lost what replay keeps."""
        return (
            self.verdict != "passed"
            and self.is_better
            and bool(self.lost)
            and all(name.startswith(GENERAL_FIGURES) for name in self.lost)
        )


@dataclass(frozen=True, slots=True)
class WayForward:
    """What to do.

    Attributes:
        action: `gate_again`, `train_again`, or None to wait.
        reason: Why, or what a person can do; empty if there is nothing to say.
        recipe: Recipe of the run, for `train_again`.

    """

    action: Literal["gate_again", "train_again"] | None = None
    reason: str = ""
    recipe: Recipe | None = None


def way_forward(version: NewestVersion, present: Recipe, gate_limit: int, run_limit: int) -> WayForward:
    """Decide what follows from the verdict on a line's newest version.

    Args:
        version: The version.
        present: Recipe of a run that starts now.
        gate_limit: How often a version is gated again by itself.
        run_limit: How often the data of a version is trained again by itself.
    """
    needed = version.items_needed
    if needed is not None:
        return _gate_again(version, needed, gate_limit)
    if version.lost_only_general_ability:
        return _train_again(version, present, run_limit)
    if version.verdict == "inconclusive":
        return WayForward(
            reason=f"{version.name} is inconclusive: {_loss(version)}; `loopwright train now --again` trains the same "
            "data with the present settings"
        )
    return WayForward()


def _gate_again(version: NewestVersion, needed: int, limit: int) -> WayForward:
    counts = [f"{needed} more held-out items needed, {version.new_items} arrived"]
    if version.more_users:
        counts.append(f"{version.more_users} more held-out users needed, {version.new_users} arrived")
    missing = f"{version.name} is inconclusive: {'; '.join(counts)}"
    if version.new_items < needed or version.new_users < version.more_users:
        return WayForward(reason=missing)
    if version.gates >= limit:
        return WayForward(
            reason=f"{missing}; it was gated again {version.gates} times by itself, and no more than {limit} are "
            f"allowed: `loopwright gate {version.name} --again` gates it again"
        )
    return WayForward("gate_again", missing)


def _train_again(version: NewestVersion, present: Recipe, limit: int) -> WayForward:
    recipe, change = with_more_replay(version.recipe, present)
    setting = f"set LOOPWRIGHT_TRAINER_{'REPLAY_SHARE' if uses_share(present) else 'REPLAY_KL'} higher"
    by_hand = f"{setting}, then `loopwright train now --again` trains the same data"
    if recipe is None:
        return WayForward(
            reason=f"{_loss(version)}, and replay is {change} already: `loopwright train now --again` trains the same "
            "data with other settings, such as a lower LEARNING_RATE"
        )
    if version.runs >= limit:
        return WayForward(
            reason=f"{version.name} is better for users, but {_loss(version)}; runs with more replay: {version.runs} "
            f"of {limit} allowed: {by_hand}"
        )
    return WayForward("train_again", f"{_loss(version)}: the same data trains again with {change}", recipe)


def uses_share(recipe: Recipe) -> bool:
    """Return whether replay answers train like corrections, so that only their number counts."""
    return recipe.method == "full" or recipe.replay_kl == 0


def with_more_replay(trained: Recipe, present: Recipe) -> tuple[Recipe | None, str]:
    """Return the present recipe with more replay than a version was trained with, and the change in words.

    None if there cannot be more. Another seed gives another order of the data and other initial weights.
    """
    seed = max(trained.seed, present.seed) + 1
    if uses_share(present):
        before = max(trained.replay_share, present.replay_share)
        if before >= MAX_SHARE:
            return None, f"{before:.0%} of the tokens"
        share = round(min(MAX_SHARE, max(before * MORE_SHARE, 0.2)), 3)
        changed = present.model_copy(update={"replay_share": share, "seed": seed})
        return changed, f"replay share {share:g} and seed {seed}"
    weight = max(trained.replay_kl, present.replay_kl) * MORE_REPLAY
    changed = present.model_copy(update={"replay_kl": weight, "seed": seed})
    return changed, f"replay weight {weight:g} and seed {seed}"


def _loss(version: NewestVersion) -> str:
    text = "; ".join(version.reasons) or "no reason was given"
    return text if len(text) <= MAX_LOSS else text[: MAX_LOSS - 1] + "…"
