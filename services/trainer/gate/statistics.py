"""Statistics of the gate: intervals, the test of votes, McNemar's test, and how much more data a verdict needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc, betaincinv, ndtri
from scipy.stats import bootstrap, sem, t

from services.trainer.gate.limits import min_clusters

CONFIDENCE = 0.95
"""Coverage of every interval in a gate report."""
RESAMPLES = 2000
SEED = 20
"""Seed of the bootstrap: the same values always give the same interval."""
MIN_BOOTSTRAP_VALUES = 10
"""With fewer values a bootstrap underestimates the spread, so the interval is Student's t."""
MAX_ITEMS = 5_000
"""If more items than this were needed, the gate cannot tell the two versions apart."""
FAIL_P = 0.05
"""A fall beyond the margin with a p-value below this is a loss."""
DOUBT_P = 0.2
"""A fall beyond the margin with a p-value between `FAIL_P` and this may be a loss."""

VALUE_STEP = 1 / 60
"""Values of users and groups are rounded to this. Means of up to six items are exact."""

Values: TypeAlias = NDArray[np.float64]
Labels: TypeAlias = Sequence[str] | NDArray[np.int64]
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


# --- the test of votes --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VoteTest:
    """One-sided tests of the hypothesis that a candidate is no better than the version it is compared with.

    Attributes:
        users: Number of users who have an item.
        groups: Number of question groups that have an item.
        p_users: p-value of the test over users.
        p_groups: p-value of the test over question groups.
    """

    users: int
    groups: int
    p_users: float
    p_groups: float

    @property
    def p_value(self) -> float:
        """Return the larger p-value, so that neither one user nor one popular question decides."""
        return max(self.p_users, self.p_groups)

    def shows(self, alpha: float) -> bool:
        """Return whether the candidate is shown to be better at this level."""
        return min(self.users, self.groups) >= min_clusters(alpha) and self.p_value <= alpha


def sign_flip_p(values: Sequence[float] | Values) -> float:
    """Return the probability that the sum of `values` would be at least as large if each sign were decided by a coin.

    This is the one-sided paired permutation test of Fisher (1935), `scipy.stats.permutation_test` with
    `permutation_type="samples"`. Values are rounded to `VALUE_STEP`. Then the distribution of the sum is known exactly
    for any number of values, and no p-value depends on how many permutations were drawn.
    """
    steps = np.rint(np.asarray(values, dtype=float) / VALUE_STEP).astype(int)
    steps //= max(1, int(np.gcd.reduce(steps)))
    sizes = np.abs(steps)
    # With negative signs on a subset the sum is (sum of sizes) - 2 (sum of the subset), and both signs are as likely.
    probability = np.zeros(int(sizes.sum()) + 1)
    probability[0] = 1.0
    reach = 1
    for size in sizes[sizes > 0].tolist():
        halves = probability[:reach] / 2
        probability[:reach] = halves
        probability[size : size + reach] += halves
        reach += size
    negative = int((sizes.sum() - steps.sum()) // 2)
    return min(1.0, float(probability[: negative + 1].sum()))


def vote_test(
    outcomes: Sequence[int] | Values | NDArray[np.int64], users: Labels, groups: Labels
) -> VoteTest:
    """Test whether outcomes are better than chance, over users and over question groups.

    Each user has one value, the mean of the user's outcomes, and so has each group.

    Args:
        outcomes: (items,) 1, 0 or -1.
        users: (items,) user of each item.
        groups: (items,) question group of each item.
    """
    by_user, by_group = cluster_means(outcomes, users), cluster_means(outcomes, groups)
    return VoteTest(len(by_user), len(by_group), sign_flip_p(by_user), sign_flip_p(by_group))


def cluster_means(outcomes: Sequence[int] | Values | NDArray[np.int64], labels: Labels) -> Values:
    """Return the mean outcome of each cluster, in order of the labels."""
    _, cluster = np.unique(np.asarray(labels), return_inverse=True)
    counts = np.bincount(cluster)
    means: Values = np.bincount(cluster, weights=np.asarray(outcomes, dtype=float)) / np.maximum(counts, 1)
    return means


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


@dataclass(frozen=True, slots=True)
class PairedMeanChange:
    """Change of a mean of values between 0 and 1 that were measured on the same questions for candidate and stable.

    With values of 0 and 1 it equals `PairedChange`.

    Attributes:
        gains: Candidate minus stable, question by question.
    """

    gains: Sequence[float]

    @property
    def n(self) -> int:
        """Number of questions."""
        return len(self.gains)

    @property
    def lost(self) -> int:
        """Questions on which stable is better."""
        return sum(gain < 0 for gain in self.gains)

    @property
    def won(self) -> int:
        """Questions on which the candidate is better."""
        return sum(gain > 0 for gain in self.gains)

    @property
    def value(self) -> float:
        """The mean change; 0 without questions."""
        return sum(self.gains) / len(self.gains) if self.gains else 0.0

    @property
    def p_value(self) -> float:
        """Return the one-sided p-value of a loss: how often coins that decide each sign would do as badly."""
        return sign_flip_p([-gain for gain in self.gains]) if self.gains else 1.0


def judge_change(
    change: PairedChange | PairedMeanChange, margin: float, doubt_p: float = DOUBT_P, fail_p: float = FAIL_P
) -> Severity:
    """Return whether a share, or a mean of shares, was kept.

    Falls up to `margin` (a share, such as 0.03) are accepted, because some answers flip with any training. Beyond it
    the p-value decides: below `fail_p` the share has "failed", below `doubt_p` it is "inconclusive". The error rates
    of this rule are in `docs/decisions/gate.md`.
    """
    if change.value >= -margin:
        return "kept"
    p_value = change.p_value
    return "failed" if p_value < fail_p else "inconclusive" if p_value < doubt_p else "kept"


# --- sample size --------------------------------------------------------------------------------------------------


def growth_needed(
    outcomes: Sequence[int] | Values | NDArray[np.int64], users: Labels, groups: Labels, alpha: float
) -> float | None:
    """Return how many times as many items a `vote_test` needs to reach `alpha`, if users and groups grow alike.

    Assumes that new users and groups are like the present ones. With as many items the chances are then about even.
    Returns None if the candidate is not ahead, or if more than `MAX_ITEMS` would be needed.
    """
    factor = 1.0
    for labels in (users, groups):
        values = cluster_means(outcomes, labels)
        total = float(values.sum())
        if total <= 0:
            return None
        # Normal approximation with a continuity correction: g * total - 1 = quantile * sqrt(g * sum of squares).
        spread = ndtri(1 - alpha) * math.sqrt(float((values**2).sum()))
        normal = ((spread + math.sqrt(spread**2 + 4 * total)) / (2 * total)) ** 2
        # If no value is negative, the p-value is 2 ** -(number of values above zero).
        coins = -math.log2(alpha) / int((values > 0).sum())
        factor = max(factor, normal, coins)
    return factor if factor * len(outcomes) <= MAX_ITEMS else None


def more_items_needed(items: int, growth: float | None, reachable: int) -> int | None:
    """Return about how many more items would decide, or None if no number that can be reached would.

    Args:
        items: Present number of items.
        growth: See `growth_needed`.
        reachable: How many items a gate can have more than now.
    """
    if growth is None:
        return None
    more = max(1, math.ceil(items * growth - 1e-9) - items)
    return more if more <= reachable else None
