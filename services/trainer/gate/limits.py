"""Limits of a gate: its significance level, the least number of users, the largest number of pairs.

Pure Python without numerical libraries, because the trainer's service imports it.
"""

from __future__ import annotations

import math
from typing import Final

FIRST_ALPHA: Final = 0.025
"""Significance level of the first gate since a promotion."""
ALPHA_DECAY: Final = 1.5
"""The level of the k-th gate is `FIRST_ALPHA` / k ** `ALPHA_DECAY`."""
MIN_CLUSTERS: Final = 8
"""Minimum number of users with an item, and of question groups."""
MAX_PAIRS: Final = 200
"""Largest number of preference pairs of each kind: more would cost more time than they add information."""


def gate_alpha(look: int) -> float:
    """Return the significance level of the `look`-th gate of a line since its last promotion, counted from 1.

    The levels of all gates together are 0.025 * zeta(1.5) = 0.065, so a line that gets no better is promoted by chance
    with at most this probability, however often it trains.
    """
    return float(FIRST_ALPHA / look**ALPHA_DECAY)


def min_clusters(alpha: float) -> int:
    """Return how many users, and question groups, a test at this level needs.

    With n values the smallest p-value of a sign-flip test is 2 ** -n.
    """
    return max(MIN_CLUSTERS, math.ceil(-math.log2(alpha)))
