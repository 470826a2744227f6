"""Anytime-valid tests of two arms of users: validity at every look, power, and agreement with `confseq`."""

from __future__ import annotations

import json
import random
from math import exp, log
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from services.rollout.core import sequential_test as tests
from services.rollout.core.sequential_test import Histogram

REFERENCE = Path(__file__).parents[1] / "data" / "rollout" / "confseq.json"
histograms = st.lists(st.integers(0, 60), min_size=5, max_size=5).map(tuple)


def histogram(scores: list[float], steps: int = 4) -> Histogram:
    counts = tests.empty(steps)
    for score in scores:
        counts = tests.add(counts, score)
    return counts


@pytest.mark.parametrize("case", json.loads(REFERENCE.read_text())["cases"])
def test_capital_and_interval_agree_with_confseq(case: dict[str, Any]) -> None:
    counts = histogram(case["scores"])
    for m, above, below in zip(case["means"], case["log_above"], case["log_below"], strict=True):
        assert tests._log_capital(counts, m, 1) == pytest.approx(above, abs=1e-6)
        assert tests._log_capital(counts, m, -1) == pytest.approx(below, abs=1e-6)
    low, high = tests.interval(counts, case["alpha"])
    assert (low, high) == pytest.approx((case["low"], case["high"]), abs=2e-3)


@settings(max_examples=60, deadline=None)
@given(low=histograms, high=histograms, shift=st.sampled_from([0.0, 0.05, -0.01, 0.3]))
def test_evidence_is_the_smallest_product_over_all_means(
    low: Histogram, high: Histogram, shift: float
) -> None:
    evidence = tests.log_evidence(low, high, shift)
    first, last = max(0.0, -shift), min(1.0, 1.0 - shift)
    grid = [first + (last - first) * i / 400 for i in range(401)]
    products = [tests._log_capital(low, m + shift, -1) + tests._log_capital(high, m, 1) for m in grid]
    users = sum(low) + sum(high)
    assert evidence <= min(products) + 1e-9, "a mean is left out: the test would not be valid"
    assert evidence >= min(products) - 10 * users * tests.RESOLUTION - 1e-9


@settings(max_examples=60, deadline=None)
@given(low=histograms, high=histograms, enough=st.floats(0.5, 8))
def test_early_end_decides_as_the_whole_search_does(low: Histogram, high: Histogram, enough: float) -> None:
    whole = tests.log_evidence(low, high)
    assert (tests.log_evidence(low, high, enough=enough) >= enough) == (whole >= enough)


def false_alarms(rate: float, share: float, users: int, runs: int, alpha: float, seed: int) -> int:
    source, level, alarms = random.Random(seed), log(1 / alpha), 0
    for _ in range(runs):
        canary, stable = tests.empty(4), tests.empty(4)
        for _ in range(users):
            score = float(source.random() < rate)
            if source.random() < share:
                canary = tests.add(canary, score)
            else:
                stable = tests.add(stable, score)
            if tests.log_evidence(canary, stable, enough=level) >= level:
                alarms += 1
                break
    return alarms


@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_equal_arms_are_rarely_told_apart_at_any_look(rate: float) -> None:
    alpha, runs = 0.1, 150
    alarms = false_alarms(rate, 0.25, 400, runs, alpha, seed=7)
    assert stats.binom.sf(alarms - 1, runs, alpha) > 0.001, f"{alarms} of {runs} at alpha {alpha}"


def test_look_at_every_user_finds_ten_points_of_harm() -> None:
    source, level, needed = random.Random(3), log(1 / 0.02), []
    for _ in range(30):
        canary, stable, users = tests.empty(4), tests.empty(4), 0
        while tests.log_evidence(canary, stable, enough=level) < level:
            canary = tests.add(canary, float(source.random() < 0.6))
            for _ in range(4):
                stable = tests.add(stable, float(source.random() < 0.7))
            users += 1
        needed.append(users)
    assert sorted(needed)[15] < 600


def test_interval_contains_the_mean_and_narrows() -> None:
    few, many = histogram([1.0] * 6 + [0.0] * 4), histogram([1.0] * 600 + [0.0] * 400)
    wide, narrow = tests.interval(few, 0.05), tests.interval(many, 0.05)
    assert wide[0] < narrow[0] < 0.6 < narrow[1] < wide[1]
    assert narrow[1] - narrow[0] < 0.12
    assert tests.interval(tests.empty(4), 0.05) == (0.0, 1.0)


def test_ratio_evidence_is_a_likelihood_ratio() -> None:
    for canary, stable, share in ((3, 97, 0.05), (0, 400, 0.05), (30, 70, 0.25)):
        users = canary + stable
        expected = stats.betabinom.logpmf(canary, users, 1, 1) - stats.binom.logpmf(canary, users, share)
        assert tests.log_ratio_evidence(canary, stable, share) == pytest.approx(expected)


def test_ratio_of_wrong_size_is_found_and_the_right_one_is_not() -> None:
    assert tests.log_ratio_evidence(0, 400, 0.05) > log(1000)
    assert tests.log_ratio_evidence(20, 380, 0.05) < 0
    assert exp(tests.log_ratio_evidence(0, 0, 0.05)) == pytest.approx(1)
