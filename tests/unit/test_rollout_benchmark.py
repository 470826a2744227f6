"""False rollbacks and power of the canary: a quick simulation, and the published one."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from scipy import stats

from benchmarks.rollout import POLICY, RESULTS, World, _exposed, _votes, summary, try_canary

PUBLISHED = {row["world"]: row for row in json.loads(RESULTS.read_text())["worlds"]}


def test_good_canaries_are_rolled_back_no_more_often_than_alpha() -> None:
    nulls = [row for name, row in PUBLISHED.items() if name.startswith("null")]
    assert len(nulls) == 3 and nulls[0]["canaries"] == 2_000
    for row in nulls:
        alarms = round(row["rolled_back"] * row["canaries"])
        assert stats.binom.sf(alarms - 1, row["canaries"], POLICY.alpha) > 0.001, row


def test_harm_is_found_before_a_quarter_of_the_users_saw_it() -> None:
    for world in ("10 points worse", "20 points worse"):
        assert PUBLISHED[world]["rolled_back_before_a_quarter_saw_it"] >= 0.95


def test_canaries_that_are_too_bad_rarely_take_over() -> None:
    row = PUBLISHED["worse by the margin"]
    promoted = round(row["promoted"] * row["canaries"])
    assert stats.binom.sf(promoted - 1, row["canaries"], POLICY.alpha) > 0.001, row
    assert PUBLISHED["10 points worse"]["promoted"] == 0


def test_better_canaries_take_over() -> None:
    assert PUBLISHED["5 points better"]["promoted"] >= 0.95
    assert PUBLISHED["as good, 80,000 users"]["promoted"] >= 0.85


def test_simulated_canaries_end_as_the_published_ones() -> None:
    null = World("null", users=4_000)
    ended = [try_canary(null, POLICY, seed) for seed in range(6)]
    assert sum(outcome.what == "roll_back" for outcome in ended) <= 1
    harmful = replace(null, harm=0.4, users=8_000)
    row = summary(harmful, [try_canary(harmful, POLICY, seed) for seed in range(4)])
    assert row["rolled_back_before_a_quarter_saw_it"] == 1.0
    assert row["median_canary_users_with_feedback"] < 100


def test_simulated_votes_of_a_user_are_correlated_and_have_the_mean() -> None:

    world = World("null", users=6_000)
    by_user: dict[int, list[float]] = {}
    for _, user, easy in _votes(world, random.Random(1), 1_000_000):
        by_user.setdefault(user, []).append(float(easy < world.stable))
    pairs = [(votes[0], votes[1]) for votes in by_user.values() if len(votes) > 1]
    first, second = zip(*pairs, strict=True)
    assert sum(first) / len(first) == pytest.approx(0.7, abs=0.04)
    assert stats.pearsonr(first, second).statistic == pytest.approx(1 / 3, abs=0.08)


def test_exposure_grows_with_the_share_and_never_exceeds_it() -> None:
    steps = [(0.0, 0, 0.05), (0.05, 100, 0.25)]
    assert 0 < _exposed(steps[:1], 50, 1_000) < 0.05 < _exposed(steps, 900, 1_000) < 0.25
