"""What a gate can show, before it is held. Pure Python, because the trainer's service imports it.

The answer is for the test of votes against a control: both versions flip some answers by chance, and what the candidate
has learned must stand out. It is an approximation, which a test checks against simulated services.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

from services.trainer.gate.limits import min_clusters

POWER: Final = 0.8
CHANCE: Final = 0.22
"""Share of items on which a candidate beats a control by chance, and on which it loses by chance: as many as answers
flip between right and wrong under any adapter, measured on SmolLM2-135M."""
STILL_WRONG: Final = 0.75
"""Share of corrected items that stable still answers wrongly at the gate, in the mean over users and over questions."""
LIKENESS_OF_USERS: Final = 0.2
LIKENESS_OF_QUESTIONS: Final = 0.7
"""Correlation of the outcomes of a user, and of a question: what a version learned shows in all wordings."""
NORMAL: Final = NormalDist()
_STEPS: Final = 30


@dataclass(frozen=True, slots=True)
class GateSize:
    """How much feedback of held-out users a gate has.

    Attributes:
        users: Users with an item.
        groups: Different questions.
        items: Items.
        improvable: Items that a better version can win: corrections and preferences, but not likes.
    """

    users: int
    groups: int
    items: int
    improvable: int


def smallest_share(size: GateSize, alpha: float, chance: float = CHANCE) -> float | None:
    """Return the smallest share of the improvable items that a gate shows to be fixed, with `POWER`.

    Assumes that the candidate breaks nothing. Returns None if not even a candidate that fixes all of them would be
    found with this power.

    Args:
        size: Size of the gate.
        alpha: Significance level of the gate.
        chance: Share of items that are won by chance, and of those that are lost by chance.
    """
    if min(size.users, size.groups) < min_clusters(alpha) or not size.improvable:
        return None
    if not _is_enough(size, 1.0, alpha, chance):
        return None
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if _is_enough(size, middle, alpha, chance) else (middle, high)
    return high


def _is_enough(size: GateSize, share: float, alpha: float, chance: float) -> bool:
    fixed = share * STILL_WRONG * size.improvable / size.items
    lead = fixed * (1 - chance)
    won = lead + (1 - lead) * chance
    lost = (1 - lead) * chance
    return all(
        _power(clusters, size.items / clusters, likeness, won, lost, alpha) >= POWER
        for clusters, likeness in ((size.users, LIKENESS_OF_USERS), (size.groups, LIKENESS_OF_QUESTIONS))
    )


def _power(clusters: int, mean_items: float, likeness: float, won: float, lost: float, alpha: float) -> float:
    """Return the power of a sign-flip test of the means of clusters."""
    lead = won - lost
    # Clusters differ in size: about half of the mean counts for the variance of a mean.
    items = max(1.0, mean_items / 2)
    variance = (won + lost - lead**2) * (likeness + (1 - likeness) / items)
    normal = NORMAL.cdf(
        (math.sqrt(clusters) * lead - NORMAL.inv_cdf(1 - alpha) * math.sqrt(variance + lead**2))
        / math.sqrt(variance)
        if variance > 0
        else math.inf
    )
    # Even if nothing is lost, 2 ** -(clusters with a win) must reach the level.
    effective = items / (1 + (items - 1) * likeness)
    has_win = 1 - (1 - won) ** effective
    least = math.ceil(-math.log2(alpha))
    return min(normal, _at_least(least, clusters, has_win))


def _at_least(least: int, n: int, probability: float) -> float:
    """Return the probability of at least `least` successes in `n` trials."""
    fewer = (
        math.comb(n, hits) * probability**hits * (1 - probability) ** (n - hits)
        for hits in range(min(least, n + 1))
    )
    return 1 - sum(fewer)


def describe(size: GateSize, alpha: float) -> str:
    """Return in one sentence what a gate of this size can show."""
    share = smallest_share(size, alpha)
    held_out = f"{size.items} items of {size.users} held-out users, up to {size.groups} questions"
    if share is None:
        return f"the gate ({held_out}) is too small to find even a version that fixes everything"
    percent = math.ceil(100 * share)
    return f"the gate ({held_out}) finds a version that fixes {percent} % of what they corrected 4 times out of 5"
