"""95 % intervals of the gate's figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest, t

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """`n` is what the value was measured on; `low` and `high` are None where n says nothing."""

    n: int
    value: float | None
    low: float | None = None
    high: float | None = None


def win_rate(wins: int, losses: int) -> Interval:
    """Wins among decided items, exact (Clopper and Pearson 1934). Ties decide nothing."""
    n = wins + losses
    if n == 0:
        return Interval(0, None)
    found = binomtest(wins, n).proportion_ci(confidence_level=CONFIDENCE, method="exact")
    return Interval(n, wins / n, float(found.low), float(found.high))


def mean(differences: Sequence[float]) -> Interval:
    """The mean of paired differences, by Student's t."""
    n = len(differences)
    if n == 0:
        return Interval(0, None)
    value = sum(differences) / n
    if n == 1:
        return Interval(1, value)
    deviation = math.sqrt(sum((x - value) ** 2 for x in differences) / (n - 1) / n)
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * deviation
    return Interval(n, value, value - half, value + half)


def share(hits: int, n: int) -> Interval:
    """A proportion, exact."""
    if n == 0:
        return Interval(0, None)
    found = binomtest(hits, n).proportion_ci(confidence_level=CONFIDENCE, method="exact")
    return Interval(n, hits / n, float(found.low), float(found.high))
