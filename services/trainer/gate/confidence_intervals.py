"""95 % intervals of the gate's figures: exact for shares, by bootstrap for means of paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv
from scipy.stats import bootstrap, t

CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 20
"""The same values give the same interval."""
FEW = 10
"""Of fewer values a bootstrap knows too little of the spread: Student's t."""


@dataclass(frozen=True, slots=True)
class Interval:
    """`n` is what the value was measured on; `low` and `high` are None where n says nothing."""

    n: int
    value: float | None
    low: float | None = None
    high: float | None = None


def share(hits: int, n: int) -> Interval:
    """A proportion, exact (Clopper and Pearson 1934)."""
    if n == 0:
        return Interval(0, None)
    tail = (1 - CONFIDENCE) / 2
    low = float(betaincinv(hits, n - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, n - hits, 1 - tail)) if hits < n else 1.0
    return Interval(n, hits / n, low, high)


def win_rate(wins: int, losses: int) -> Interval:
    """Wins among decided items, exact. Ties decide nothing."""
    return share(wins, wins + losses)


def mean(differences: Sequence[float]) -> Interval:
    """The mean of paired differences, by the bootstrap (BCa, Efron 1987) over the pairs; of fewer than `FEW` values by
    Student's t."""
    n = len(differences)
    if n == 0:
        return Interval(0, None)
    value = sum(differences) / n
    if n == 1:
        return Interval(1, value)
    if max(differences) == min(differences):
        return Interval(n, differences[0], differences[0], differences[0])
    if n < FEW:
        deviation = math.sqrt(sum((x - value) ** 2 for x in differences) / (n - 1) / n)
        half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * deviation
        return Interval(n, value, value - half, value + half)
    found = bootstrap(
        (np.asarray(differences, dtype=float),),
        np.mean,
        n_resamples=RESAMPLES,
        batch=250,
        confidence_level=CONFIDENCE,
        method="BCa",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return Interval(n, value, float(found.low), float(found.high))
