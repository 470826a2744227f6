"""Statistics of the gate: intervals, McNemar's test and sample sizes."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from services.trainer.gate.statistics import (
    OutcomePair,
    decided_items_needed,
    judge_change,
    mean_interval,
    more_items_needed,
    paired_change,
    proportion_interval,
    win_rate_interval,
)


def flips(lost: int, won: int, total: int) -> list[OutcomePair]:
    return [(False, True)] * lost + [(True, False)] * won + [(True, True)] * (total - lost - won)


# --- intervals ----------------------------------------------------------------------------------------------------


def test_intervals_are_exact_and_shrink_with_n() -> None:
    few, many = win_rate_interval(9, 1), win_rate_interval(90, 10)
    assert few.low == pytest.approx(0.555, abs=0.001)
    assert many.low is not None
    assert few.low is not None
    assert few.low < many.low < 0.9
    assert win_rate_interval(0, 0).value is None
    known = mean_interval([1.0, 2.0, 3.0])
    assert (known.low, known.high) == (pytest.approx(-0.484, abs=0.001), pytest.approx(4.484, abs=0.001))


def test_interval_of_a_mean_contains_it_and_is_reproducible() -> None:
    values = [0.1, 0.4, -0.2, 0.3, 0.5, 0.0, 0.2, -0.1, 0.6, 0.3, 0.1, 0.2]
    interval = mean_interval(values)
    assert interval == mean_interval(values)
    assert interval.low is not None
    assert interval.high is not None
    assert interval.value is not None
    assert interval.low < interval.value < interval.high
    assert mean_interval([0.2] * 12).low == 0.2


# --- McNemar's test -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lost", "won", "total", "severity"),
    [
        (60, 60, 493, "kept"),
        (66, 54, 493, "kept"),
        (72, 50, 493, "failed"),
        (20, 12, 194, "inconclusive"),
        (1, 0, 4, "kept"),
    ],
)
def test_fall_counts_beyond_margin_and_chance(lost: int, won: int, total: int, severity: str) -> None:
    assert judge_change(paired_change(flips(lost, won, total)), 0.03) == severity


def test_exact_tests_agree_with_scipy() -> None:
    expected = binomtest(9, 12, alternative="greater").pvalue
    assert paired_change(flips(9, 3, 40)).p_value == pytest.approx(expected)
    exact = binomtest(7, 30).proportion_ci(method="exact")
    interval = proportion_interval(7, 30)
    assert interval.low == pytest.approx(exact.low)
    assert interval.high == pytest.approx(exact.high)


# --- sample size --------------------------------------------------------------------------------------------------


def test_needed_items_are_the_first_with_bound_above_one_half() -> None:
    needed = decided_items_needed(6, 4)
    assert needed is not None
    assert (proportion_interval(int(0.6 * needed + 1e-9), needed).low or 0) > 0.5
    assert (proportion_interval(int(0.6 * (needed - 1) + 1e-9), needed - 1).low or 0) <= 0.5


def test_no_number_of_items_decides_for_an_even_candidate() -> None:
    assert decided_items_needed(10, 10) is None


def test_estimate_is_at_least_what_is_missing_to_the_minimum() -> None:
    assert more_items_needed(9, 0, 9, 30) == 21
    assert more_items_needed(0, 0, 12, 30) == 18
