"""Statistics of the gate: intervals, the test of votes, McNemar's test and sample sizes."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, permutation_test

from services.trainer.gate.limits import gate_alpha, min_clusters
from services.trainer.gate.statistics import (
    OutcomePair,
    PairedMeanChange,
    gains,
    growth_needed,
    judge_change,
    mean_interval,
    more_items_needed,
    paired_change,
    proportion_interval,
    sign_flip_p,
    vote_test,
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


# --- repeated answers ---------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_change_of_one_answer_per_question_is_mcnemars(pairs: list[OutcomePair]) -> None:
    once, mean = paired_change(pairs), PairedMeanChange(gains(pairs))
    assert (mean.n, mean.lost, mean.won) == (once.n, once.lost, once.won)
    assert mean.value == pytest.approx(once.value)
    assert mean.p_value == pytest.approx(once.p_value)
    assert judge_change(mean, 0.03) == judge_change(once, 0.03)


@given(
    st.integers(1, 6).flatmap(
        lambda draws: st.lists(
            st.tuples(*[st.integers(0, draws).map(lambda right: right / draws)] * 2), min_size=1, max_size=12
        )
    )
)
def test_p_value_of_a_change_of_means_is_exact(pairs: list[tuple[float, float]]) -> None:
    change = PairedMeanChange(gains(pairs))
    losses = [-gain for gain in change.gains]
    signs = np.array(np.meshgrid(*[[1, -1]] * len(losses))).reshape(len(losses), -1)
    as_bad = (losses @ signs >= sum(losses) - 1e-9).mean()
    assert change.p_value == pytest.approx(as_bad)


def test_mean_of_several_answers_hides_less() -> None:
    """Of 300 versions each: a sixth of the answers flips by chance, and 5 % of the questions are lost, or none."""
    rng = np.random.default_rng(5)

    def verdicts(draws: int, loss: float) -> Counter[str]:
        drawn = rng.random((300, 493, draws))
        chance = ((drawn < 0.085).astype(float) - (drawn > 0.915)).mean(-1)
        changes = np.where(rng.random((300, 493)) < loss, -1.0, chance)
        return Counter(judge_change(PairedMeanChange(row.tolist()), 0.03) for row in changes)

    assert verdicts(3, 0.0)["kept"] >= 297 > verdicts(1, 0.0)["kept"]
    assert verdicts(3, 0.05)["failed"] > 1.15 * verdicts(1, 0.05)["failed"]


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


# --- the test of votes --------------------------------------------------------------------------------------------


def labels(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{i}" for i in range(count)]


@pytest.mark.parametrize("seed", range(6))
def test_sign_flip_p_is_the_exact_permutation_test(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.choice([-1, -0.5, 0, 1 / 3, 0.5, 1], 11)
    exact = permutation_test(
        (values,), np.sum, permutation_type="samples", alternative="greater", n_resamples=np.inf
    )
    assert sign_flip_p(values) == pytest.approx(exact.pvalue)


def test_sign_flip_p_with_many_values_agrees_with_sampled_signs() -> None:
    values = np.random.default_rng(3).choice([-1.0, 0.0, 0.25, 1.0], 120)
    sampled = permutation_test(
        (values,), np.sum, permutation_type="samples", alternative="greater", n_resamples=20_000, rng=1
    )
    assert sign_flip_p(values) == pytest.approx(sampled.pvalue, abs=0.01)


def test_sign_flip_p_of_nothing_and_of_ties_is_one() -> None:
    assert sign_flip_p([]) == 1.0
    assert sign_flip_p([0.0] * 20) == 1.0
    assert sign_flip_p([1.0] * 5) == 2**-5


def test_one_heavy_user_does_not_decide() -> None:
    outcomes = [1] * 100 + [-1] * 10
    users = ["heavy"] * 100 + labels("u", 10)
    assert vote_test(outcomes, labels("g", 110), labels("g", 110)).p_value < 1e-9
    assert vote_test(outcomes, users, labels("g", 110)).p_value > 0.9


def test_one_popular_question_does_not_decide() -> None:
    outcomes = [1] * 100 + [-1] * 10
    groups = ["popular"] * 100 + labels("g", 10)
    found = vote_test(outcomes, labels("u", 110), groups)
    assert found.p_users < 1e-9
    assert found.p_value == found.p_groups > 0.9


@pytest.mark.parametrize(("users", "groups"), [(20, 60), (6, 60), (2, 60), (60, 5)])
def test_dependent_items_pass_by_chance_at_most_at_the_level(users: int, groups: int) -> None:
    """Items of a user, or of a question, share half of their outcome."""
    rng = np.random.default_rng(7)
    passed, rounds = 0, 600
    for _ in range(rounds):
        user, group = rng.integers(users, size=60), rng.integers(groups, size=60)
        shared = rng.standard_normal(users)[user] if users < groups else rng.standard_normal(groups)[group]
        outcomes = np.sign(shared + rng.standard_normal(60))
        passed += vote_test(outcomes, user, group).p_value <= 0.025
    assert passed / rounds <= 0.025 + 2 * (0.025 * 0.975 / rounds) ** 0.5


def test_levels_of_all_gates_add_up_to_less_than_a_fifteenth() -> None:
    assert gate_alpha(1) == 0.025
    levels = [gate_alpha(look) for look in range(1, 100_000)]
    assert levels == sorted(levels, reverse=True)
    assert sum(levels) < 1 / 15
    assert all(2.0 ** -min_clusters(alpha) <= alpha for alpha in levels[:1000])
    assert min_clusters(gate_alpha(1)) == 8


# --- sample size --------------------------------------------------------------------------------------------------


def test_growth_is_what_makes_the_test_pass() -> None:
    outcomes = [1, 1, 1, 0, -1] * 4
    growth = growth_needed(outcomes, labels("u", 20), labels("g", 20), 0.025)
    assert growth is not None
    assert growth > 1

    def p_value(repeats: int) -> float:
        several = outcomes * repeats
        return vote_test(several, labels("u", len(several)), labels("g", len(several))).p_value

    assert p_value(math.ceil(growth)) <= 0.025
    assert p_value(max(1, math.floor(growth) - 1)) > 0.025 / 2


def test_no_growth_helps_a_candidate_that_is_not_ahead() -> None:
    assert growth_needed([1, -1] * 10, labels("u", 20), labels("g", 20), 0.025) is None
    assert growth_needed([], [], [], 0.025) is None
    # Ahead over users, behind over questions.
    assert growth_needed([1] * 9 + [-1] * 3, labels("u", 12), ["one"] * 9 + labels("g", 3), 0.025) is None


def test_no_more_items_are_advised_than_can_be_reached() -> None:
    assert more_items_needed(40, 2.0, 40) == 40
    assert more_items_needed(40, 2.0, 39) is None
    assert more_items_needed(40, None, 1000) is None
    barely = [1] * 51 + [-1] * 49
    assert growth_needed(barely, labels("u", 100), labels("g", 100), 0.025) is None
