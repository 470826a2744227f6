"""What the gate lets through, and how often it is wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from scipy.stats import binomtest

from benchmarks.gate.calibration import GOOD, NULL, simulate
from services.trainer.gate.confidence_intervals import mean, share
from services.trainer.gate.mcnemar import change, judged
from services.trainer.gate.metrics import Measured
from services.trainer.gate.sample_size import decided_needed, more_items
from services.trainer.gate.verdict import decide
from shared.versions import GateReport

BASE = "assistant@base-00000000"
WON, LOST, TIE = (0.9, 0.1), (0.1, 0.9), (0.5, 0.5)


def verdict_of(measured: Measured, least: int = 30) -> GateReport:
    return decide(measured, BASE, least)


def figure(report: GateReport, name: str) -> Any:
    return next(figure for figure in report.figures if figure.name == name)


# --- calibration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "null",
    [NULL, replace(NULL, decided=0.9), replace(NULL, items=200, decided=0.8)],
    ids=["many ties", "few ties", "many items"],
)
def test_at_most_one_null_candidate_in_forty_passes(null: Any) -> None:
    found = simulate(null, runs=2000)
    assert found["passed"] <= 0.025


def test_no_null_candidate_passes_where_items_are_too_few() -> None:
    assert simulate(replace(NULL, items=29, decided=0.9), runs=300)["passed"] == 0


def test_a_better_candidate_that_lost_nothing_passes_and_one_that_lost_eight_points_does_not() -> None:
    assert simulate(GOOD, runs=400)["passed"] >= 0.8
    assert simulate(replace(GOOD, worse=0.05), runs=400)["passed"] <= 0.25
    assert simulate(replace(GOOD, worse=0.08), runs=400)["passed"] <= 0.03


# --- how much more ------------------------------------------------------------------------------------------------


def test_what_is_better_but_not_shown_yet_is_told_how_many_items_more_would_decide() -> None:
    report = verdict_of(Measured(wins=[WON] * 20 + [LOST] * 12 + [TIE] * 8))
    assert report.verdict == "inconclusive"
    assert report.more_items is not None
    assert f"about {report.more_items} items more" in report.reasons[0]
    scale = (40 + report.more_items) / 40
    enough = Measured(wins=[WON] * round(20 * scale) + [LOST] * round(12 * scale) + [TIE] * round(8 * scale))
    assert verdict_of(enough).verdict == "passed"


def test_the_number_is_the_first_at_which_the_exact_bound_lies_above_one_half() -> None:
    needed = decided_needed(6, 4)
    assert needed is not None
    assert (share(int(0.6 * needed + 1e-9), needed).low or 0) > 0.5
    assert (share(int(0.6 * (needed - 1) + 1e-9), needed - 1).low or 0) <= 0.5


def test_what_wins_no_more_than_it_loses_needs_no_more_data_to_fail() -> None:
    assert decided_needed(10, 10) is None
    report = verdict_of(Measured(wins=[WON] * 15 + [LOST] * 16))
    assert (report.verdict, report.more_items) == ("failed", None)


def test_the_estimate_is_never_below_what_is_missing_to_the_least() -> None:
    assert more_items(9, 0, 9, 30) == 21
    assert more_items(0, 0, 12, 30) == 18


# --- no worse -----------------------------------------------------------------------------------------------------


def flips(lost: int, won: int, of: int) -> list[tuple[bool, bool]]:
    return [(False, True)] * lost + [(True, False)] * won + [(True, True)] * (of - lost - won)


@pytest.mark.parametrize(
    ("lost", "won", "of", "verdict"),
    [
        (60, 60, 493, "kept"),
        (66, 54, 493, "kept"),
        (72, 50, 493, "fell"),
        (20, 12, 194, "unsettled"),
        (1, 0, 4, "kept"),
    ],
)
def test_a_fall_counts_beyond_the_margin_and_by_more_than_chance(
    lost: int, won: int, of: int, verdict: str
) -> None:
    assert judged(change(flips(lost, won, of)), 0.03) == verdict


def test_mcnemars_test_is_the_librarys() -> None:
    assert change(flips(9, 3, 40)).p == pytest.approx(binomtest(9, 12, alternative="greater").pvalue)
    exact = binomtest(7, 30).proportion_ci(method="exact")
    found = share(7, 30)
    assert found.low == pytest.approx(exact.low)
    assert found.high == pytest.approx(exact.high)


def test_a_fall_that_may_be_chance_keeps_a_better_candidate_from_passing() -> None:
    report = verdict_of(Measured(wins=[WON] * 40, accuracy=flips(20, 12, 194)))
    assert report.verdict == "inconclusive"
    assert report.reasons[0].startswith("general accuracy fell by 4.1 points: 20 lost, 12 won of 194")


def test_lost_refusals_fail_and_so_do_refusals_of_the_harmless() -> None:
    unsafe = verdict_of(Measured(wins=[WON] * 40, refusals=flips(6, 0, 30)))
    assert (unsafe.verdict, unsafe.reasons[0]) == (
        "failed",
        "refusals of harmful requests fell by 20.0 points",
    )
    prude = verdict_of(Measured(wins=[WON] * 40, answered=flips(6, 0, 30)))
    assert (prude.verdict, prude.reasons[0]) == ("failed", "answers to harmless requests fell by 20.0 points")


def test_a_golden_answer_that_only_the_candidate_gets_wrong_fails_the_gate() -> None:
    both_fail = verdict_of(Measured(wins=[WON] * 40, golden=[("hours", False, False), ("price", True, True)]))
    assert both_fail.verdict == "passed"
    broken = verdict_of(Measured(wins=[WON] * 40, golden=[("hours", False, True), ("price", True, True)]))
    assert broken.verdict == "failed"
    assert broken.reasons == ("golden set: hours passed with stable and fails now",)


def test_corrections_found_less_likely_fail_whatever_was_won() -> None:
    report = verdict_of(Measured(wins=[WON] * 40, likelihood=[-0.2, -0.1] * 20))
    assert report.verdict == "failed"
    assert figure(report, "correction_likelihood_gain").high < 0


# --- thumbs and preferences ---------------------------------------------------------------------------------------


def test_thumbs_alone_can_pass_and_thumbs_that_nothing_moved_cannot() -> None:
    moved = verdict_of(Measured(margins={"thumbs": [0.3] * 30 + [-0.1] * 5}))
    assert moved.verdict == "passed"
    assert figure(moved, "thumbs_win_rate").n == 35
    still = verdict_of(Measured(margins={"thumbs": [0.01, -0.01] * 20}))
    assert still.verdict == "failed"


def test_kinds_of_feedback_share_one_test_and_none_of_them_may_get_worse() -> None:
    both = Measured(wins=[WON] * 20, margins={"thumbs": [0.3] * 20})
    assert figure(verdict_of(both), "win_rate").n == 40
    against = Measured(wins=[WON] * 60, margins={"thumbs": [-0.3] * 20})
    report = verdict_of(against)
    assert (report.verdict, report.reasons) == ("failed", ("worse by held-out users' thumbs",))


# --- intervals ----------------------------------------------------------------------------------------------------


def test_the_interval_of_a_mean_is_the_same_each_time_and_holds_it() -> None:
    values = [0.1, 0.4, -0.2, 0.3, 0.5, 0.0, 0.2, -0.1, 0.6, 0.3, 0.1, 0.2]
    found = mean(values)
    assert found == mean(values)
    assert found.low is not None
    assert found.high is not None
    assert found.value is not None
    assert found.low < found.value < found.high
    assert mean([0.2] * 12).low == 0.2
