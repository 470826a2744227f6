"""Anytime-valid tests of two arms of users: they may be looked at after every user, and stopped at any time. Pure.

Each user contributes one score in [0, 1] per test, which never changes afterwards. A histogram per arm is all the
state, so the order of the users does not matter, and a repeated record that counts nobody changes nothing.

For a mean `m` and bets `b` in (0, 1), prod(1 + b (x - m)) over the users of an arm is a nonnegative martingale if their
mean is `m`, and a supermartingale if it is lower; prod(1 - b (x - m)) if it is higher. The mean over fixed bets keeps
that ("betting", Waudby-Smith and Ramdas 2023, https://doi.org/10.1093/jrsssb/qkad009, section 4). To refute that one
arm's mean is at least another's, the two arms bet against both sides of a common `m`. Their product is an e-process
under every such `m`, so the smallest product over all `m` is one too (Turner, Ly and Gruenwald 2024,
https://doi.org/10.1016/j.jspi.2023.106116). By Ville's inequality it ever reaches 1 / alpha with a probability of at
most alpha. No sample size is assumed.

It is required that the users of an arm are drawn alike while the test runs: their scores have one mean, whatever came
before. `docs/decisions/canary.md` says why that is so.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from functools import lru_cache
from math import exp, lgamma, log, log1p
from typing import Final

BETS: Final = (0.02, 0.05, 0.1, 0.18, 0.28, 0.42, 0.6, 0.9)
"""Fractions that are bet, with equal weights. Below 1, so that no product can become negative, whatever `m` is."""
RESOLUTION: Final = 1 / 512
"""Width of the cells of `m`. In each cell a lower bound of the product counts, so no `m` is left out."""

Histogram = tuple[int, ...]
"""Users by score: the i-th of n + 1 counters is for the score i / n."""


def empty(steps: int) -> Histogram:
    """Return a histogram without users, for scores in steps of 1 / `steps`."""
    return (0,) * (steps + 1)


def add(histogram: Histogram, score: float) -> Histogram:
    """Return the histogram with one more user. The score, in [0, 1], is rounded to the nearest step."""
    place = round(min(1.0, max(0.0, score)) * (len(histogram) - 1))
    return (*histogram[:place], histogram[place] + 1, *histogram[place + 1 :])


def mean(histogram: Histogram) -> float | None:
    """Return the mean score, or None without users."""
    users = sum(histogram)
    return sum(i * n for i, n in enumerate(histogram)) / (len(histogram) - 1) / users if users else None


def log_evidence(low: Histogram, high: Histogram, shift: float = 0.0, enough: float = float("inf")) -> float:
    """Return the log of the evidence against "the mean of `low` is at least the mean of `high` plus `shift`".

    It is refuted at level alpha once the evidence has reached log(1 / alpha).

    Args:
        low: The arm with the lower mean, if the hypothesis is wrong.
        high: The arm with the higher mean, if the hypothesis is wrong.
        shift: The least difference that the hypothesis asserts; in (-1, 1).
        enough: A result that is not going to reach this is returned as soon as that is clear, and is an upper bound.

    """
    if not any(low) and not any(high):
        return 0.0
    first, last = max(0.0, -shift), min(1.0, 1.0 - shift)

    def below(m: float) -> float:
        return _log_capital(low, m + shift, -1)

    def above(m: float) -> float:
        return _log_capital(high, m, 1)

    low_mean, high_mean = mean(low), mean(high)
    guess = ((0.5 if low_mean is None else low_mean) - shift + (0.5 if high_mean is None else high_mean)) / 2
    guess = min(last, max(first, round(guess / RESOLUTION) * RESOLUTION))
    for m in (guess, first, last):
        if (upper := below(m) + above(m)) < enough < float("inf"):
            return upper
    # `below` grows with m and `above` falls, so the ends of a cell bound the product in it. Halve the lowest cell.
    ends = {m: (below(m), above(m)) for m in (first, last)}
    cells = [(ends[first][0] + ends[last][1], first, last)]
    while True:
        bound, left, right = heapq.heappop(cells)
        middle = (left + right) / 2
        if bound >= enough or right - left <= RESOLUTION:
            return bound
        ends[middle] = (below(middle), above(middle))
        if sum(ends[middle]) < enough < float("inf"):
            return sum(ends[middle])
        for a, b in ((left, middle), (middle, right)):
            heapq.heappush(cells, (ends[a][0] + ends[b][1], a, b))


def interval(histogram: Histogram, alpha: float) -> tuple[float, float]:
    """Return a confidence sequence of the mean: with probability 1 - `alpha`, it always contains the mean."""
    enough = log(2 / alpha)
    if not any(histogram):
        return 0.0, 1.0
    center = mean(histogram) or 0.0
    lower = _last_refuted(histogram, 1, enough, 0.0, center)
    upper = _last_refuted(histogram, -1, enough, 1.0, center)
    return lower, upper


def log_ratio_evidence(canary: int, stable: int, share: float) -> float:
    """Return the log of the evidence against "each user is assigned to the canary with probability `share`".

    A mixture of likelihood ratios with the Beta distribution Beta(1, 1) (Lindon and Malek 2022,
    https://arxiv.org/abs/2011.03567, section 2).
    """
    mixture = lgamma(canary + 1) + lgamma(stable + 1) - lgamma(canary + stable + 2)
    return mixture - canary * log(share) - stable * log1p(-share)


@lru_cache(maxsize=8192)
def _log_factors(steps: int, m: float, sign: int) -> tuple[tuple[float, ...], ...]:
    """Return log(1 + sign * bet * (score - m)), by bet and score."""
    return tuple(tuple(log1p(sign * bet * (i / steps - m)) for i in range(steps + 1)) for bet in BETS)


def _log_capital(histogram: Histogram, m: float, sign: int) -> float:
    """Return the log of the mean capital of all bets that the mean is above `m` (`sign` 1) or below it (-1)."""
    counts = [(i, n) for i, n in enumerate(histogram) if n]
    rows = _log_factors(len(histogram) - 1, m, sign)
    return _log_mean_exp([sum([n * row[i] for i, n in counts]) for row in rows])


def _log_mean_exp(logs: Sequence[float]) -> float:
    top = max(logs)
    return top + log(sum([exp(each - top) for each in logs]) / len(logs))


def _last_refuted(histogram: Histogram, sign: int, enough: float, outer: float, center: float) -> float:
    """Return the mean nearest to `center` that is refuted, seen from `outer`; `outer` itself if none is."""
    if _log_capital(histogram, outer, sign) < enough:
        return outer
    inner = center
    for _ in range(12):
        middle = (outer + inner) / 2
        if _log_capital(histogram, middle, sign) >= enough:
            outer = middle
        else:
            inner = middle
    return outer
