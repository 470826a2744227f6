"""Statistics of the gate: confidence intervals, McNemar's test, and how much more data a verdict needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import bdtrc, betaincinv
from scipy.stats import bootstrap, sem, t

CONFIDENCE = 0.95
"""Coverage of every interval in a gate report."""
RESAMPLES = 2000
SEED = 20
"""Seed of the bootstrap: the same values always give the same interval."""
MIN_BOOTSTRAP_VALUES = 10
"""With fewer values a bootstrap underestimates the spread, so the interval is Student's t."""
MAX_DECIDED_ITEMS = 5_000
"""If more decided items than this were needed, the gate cannot tell the two versions apart."""
FAIL_P = 0.05
"""A fall beyond the margin with a p-value below this is a loss."""
DOUBT_P = 0.2
"""A fall beyond the margin with a p-value between `FAIL_P` and this may be a loss."""

ScorePair = tuple[float, float]
"""(candidate, stable)"""
OutcomePair = tuple[bool, bool]
"""(candidate, stable)"""
Severity = Literal["kept", "inconclusive", "failed"]


# --- intervals ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate from `n` values with its confidence interval.

    `value` is None if n is 0; `low` and `high` are None if n is too small for an interval.
    """

    n: int
    value: float | None
    low: float | None = None
    high: float | None = None


def proportion_interval(hits: int, n: int) -> Interval:
    """Return the share `hits / n` with its exact interval (Clopper and Pearson 1934)."""
    if n == 0:
        return Interval(0, None)
    tail = (1 - CONFIDENCE) / 2
    low = float(betaincinv(hits, n - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, n - hits, 1 - tail)) if hits < n else 1.0
    return Interval(n, hits / n, low, high)


def win_rate_interval(wins: int, losses: int) -> Interval:
    """Return the share of wins among wins and losses with its exact interval. Ties do not count."""
    return proportion_interval(wins, wins + losses)


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean of `values` with its interval.

    The interval is a BCa bootstrap (Efron 1987), or Student's t for fewer than `MIN_BOOTSTRAP_VALUES` values.
    """
    n = len(values)
    if n == 0:
        return Interval(0, None)
    mean = sum(values) / n
    if n == 1:
        return Interval(1, mean)
    if max(values) == min(values):
        return Interval(n, values[0], values[0], values[0])
    if n < MIN_BOOTSTRAP_VALUES:
        low, high = t.interval(CONFIDENCE, n - 1, loc=mean, scale=sem(values))
        return Interval(n, mean, float(low), float(high))
    interval = bootstrap(
        (np.asarray(values, dtype=float),),
        np.mean,
        n_resamples=RESAMPLES,
        batch=250,
        confidence_level=CONFIDENCE,
        method="BCa",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return Interval(n, mean, float(interval.low), float(interval.high))


def exp_interval(interval: Interval) -> Interval:
    """Return the interval of exp(x) for an interval of x."""

    def exp(value: float | None) -> float | None:
        return None if value is None else math.exp(value)

    return Interval(interval.n, exp(interval.value), exp(interval.low), exp(interval.high))


def gains(pairs: Sequence[ScorePair]) -> list[float]:
    """Return candidate minus stable for each pair."""
    return [candidate - stable for candidate, stable in pairs]


def stable_mean(pairs: Sequence[ScorePair]) -> float | None:
    """Return the mean of the stable version's values, or None if there are none."""
    return sum(stable for _, stable in pairs) / len(pairs) if pairs else None


# --- McNemar's test -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PairedChange:
    """Change of a share that was measured on the same `n` questions for candidate and stable.

    `lost` questions are right only with stable, `won` questions only with the candidate.
    """

    n: int
    lost: int
    won: int

    @property
    def value(self) -> float:
        """Candidate minus stable, as a share of all questions; 0 if there are none."""
        return (self.won - self.lost) / self.n if self.n else 0.0

    @property
    def p_value(self) -> float:
        """Return the one-sided p-value of a loss by McNemar's exact test.

        It is the probability of at least `lost` losses if each question on which the two differ were decided by a
        coin; 1 if nothing was lost.
        """
        return float(bdtrc(self.lost - 1, self.lost + self.won, 0.5)) if self.lost else 1.0


def paired_change(pairs: Sequence[OutcomePair]) -> PairedChange:
    """Count the questions on which candidate and stable differ."""
    lost = sum(stable and not candidate for candidate, stable in pairs)
    won = sum(candidate and not stable for candidate, stable in pairs)
    return PairedChange(len(pairs), lost, won)


def judge_change(
    change: PairedChange, margin: float, doubt_p: float = DOUBT_P, fail_p: float = FAIL_P
) -> Severity:
    """Return whether a share was kept.

    Falls up to `margin` (a share, such as 0.03) are accepted, because some answers flip with any training. Beyond it
    the p-value decides: below `fail_p` the share has "failed", below `doubt_p` it is "inconclusive". The error rates
    of this rule are in `docs/decisions/gate.md`.
    """
    if change.value >= -margin:
        return "kept"
    p_value = change.p_value
    return "failed" if p_value < fail_p else "inconclusive" if p_value < doubt_p else "kept"


# --- sample size --------------------------------------------------------------------------------------------------


def decided_items_needed(wins: int, losses: int) -> int | None:
    """Return how many decided items would lift the exact lower bound of the win rate above one half.

    Assumes that the observed win rate is the true one. At the returned number the chances are then about even that
    the bound passes one half. Returns None if at most half of the items were won, or if more than
    `MAX_DECIDED_ITEMS` would be needed.
    """
    decided = wins + losses
    if decided == 0 or wins <= losses:
        return None
    sizes = np.arange(decided, MAX_DECIDED_ITEMS + 1)
    expected_wins = np.floor(sizes * (wins / decided) + 1e-9)
    # The lower bound is above 1/2 exactly if this many wins or more have a probability below (1 - CONFIDENCE) / 2
    # under a fair coin.
    sufficient = bdtrc(expected_wins - 1, sizes, 0.5) < (1 - CONFIDENCE) / 2
    return int(sizes[sufficient.argmax()]) if sufficient.any() else None


def more_items_needed(wins: int, losses: int, items: int, min_items: int) -> int | None:
    """Return about how many more items would decide, assuming that ties stay as frequent as observed.

    The result is at least the number missing to `min_items`. Returns None if no number of items would decide
    (`decided_items_needed`) and none are missing.
    """
    missing = max(0, min_items - items)
    decided = decided_items_needed(wins, losses)
    if decided is None:
        return missing or None
    total = -(-decided * items // (wins + losses))
    return max(missing, total - items)
