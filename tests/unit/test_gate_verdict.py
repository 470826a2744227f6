"""The verdict: what passes, what fails, what stays inconclusive, and why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from services.trainer.gate.limits import gate_alpha
from services.trainer.gate.metrics import Measurements
from services.trainer.gate.metrics.corrections import CorrectionScores
from services.trainer.gate.metrics.general_accuracy import ACCURACY_MARGIN
from services.trainer.gate.metrics.general_likelihood import NLL_MARGIN, GeneralLikelihoods
from services.trainer.gate.metrics.metric import JudgeOptions, Votes
from services.trainer.gate.metrics.safety import SafetyOutcomes
from services.trainer.gate.statistics import OutcomePair
from services.trainer.gate.verdict import CONTROL_NOT_RUN, PASSED, REPLACES_ERASED, decide, votes_of
from shared.versions import GateReport
from tests.gate_factories import SCORES, margin_gains, vote_items
from tests.gate_factories import corrections as correction_scores

BASE = "assistant@base-00000000"
OPTIONS = JudgeOptions(min_items=30)
UNCHANGED: Measurements = {
    "general_accuracy": [(True, True)] * 60,
    "general_likelihood": GeneralLikelihoods(nll=[(0.3, 0.3)] * 80),
}
"""General ability as it was."""


def corrections(wins: int, losses: int = 0, ties: int = 0) -> Measurements:
    """Answers to held-out corrections with these outcomes."""
    return {"corrections": correction_scores(wins, losses, ties)}


def flips(lost: int, won: int, total: int) -> list[OutcomePair]:
    return [(False, True)] * lost + [(True, False)] * won + [(True, True)] * (total - lost - won)


def report_of(
    *measurements: Measurements,
    options: JudgeOptions = OPTIONS,
    against_base: Measurements | None = None,
    control: Votes | None = None,
) -> GateReport:
    merged = {name: value for part in measurements for name, value in part.items()}
    return decide(merged, gated_against=BASE, options=options, against_base=against_base, control=control)


def figure(report: GateReport, name: str) -> Any:
    return next(figure for figure in report.figures if figure.name == name)


# --- better -------------------------------------------------------------------------------------------------------


def test_better_candidate_passes_and_the_report_says_on_what() -> None:
    report = report_of(corrections(25, ties=8), UNCHANGED)
    assert (report.verdict, report.reasons) == ("passed", (PASSED, CONTROL_NOT_RUN))
    assert report.test is not None
    assert (report.test.wins, report.test.losses, report.test.ties) == (25, 0, 8)
    assert (report.test.users, report.test.groups) == (33, 33)
    assert report.test.p_users < (report.alpha or 0)
    assert (report.look, report.alpha) == (1, 0.025)
    assert figure(report, "user_votes").value == pytest.approx(25 / 33, abs=1e-4)


def test_candidate_with_the_same_answers_does_not_pass() -> None:
    report = report_of(corrections(0, ties=60), UNCHANGED)
    assert report.verdict == "failed"
    assert report.reasons[0].startswith("not shown to be better")


@pytest.mark.parametrize(
    ("given", "missing", "more"),
    [
        (vote_items(22), "22 of 30 items", 8),
        (vote_items(40, users=5), "5 of 8 users", 3),
        (vote_items(40, groups=3), "3 of 8 different questions", 5),
        (vote_items(12, users=2, groups=2), "12 of 30 items, 2 of 8 users, 2 of 8 different questions", 18),
    ],
)
def test_too_little_feedback_is_inconclusive_and_says_what_is_missing(
    given: Votes, missing: str, more: int
) -> None:
    report = report_of({"corrections": CorrectionScores(votes=given)}, UNCHANGED)
    assert report.verdict == "inconclusive"
    assert report.reasons == (f"too little held-out feedback to decide: {missing}",)
    assert (report.more_items, report.alpha) == (more, None)


def test_estimated_number_of_items_would_decide() -> None:
    report = report_of(corrections(20, 12, 8))
    assert report.verdict == "inconclusive"
    assert report.more_items is not None
    assert f"about {report.more_items} more items" in report.reasons[0]
    scale = (40 + report.more_items) / 40
    enough = corrections(round(20 * scale), round(12 * scale), round(8 * scale))
    assert report_of(enough, options=replace(OPTIONS, look=2)).verdict == "passed"


def test_candidate_that_wins_half_fails_without_an_estimate() -> None:
    report = report_of(corrections(15, 16))
    assert (report.verdict, report.more_items) == ("failed", None)


@pytest.mark.parametrize(("wins", "losses"), [(108, 92), (113, 87)])
def test_no_more_pairs_are_advised_than_a_gate_counts(wins: int, losses: int) -> None:
    report = report_of({"pair_margins": {"thumbs": margin_gains([0.3] * wins + [-0.3] * losses)}})
    assert (report.verdict, report.more_items) == ("failed", None)
    assert report.reasons[0].endswith("a gate cannot have enough items to decide so small a lead")
    few = report_of({"pair_margins": {"thumbs": margin_gains([0.3] * 24 + [-0.3] * 16)}})
    assert few.verdict == "inconclusive"


def test_later_gate_of_a_line_needs_more_evidence() -> None:
    measured = corrections(22, 9)
    assert report_of(measured).verdict == "passed"
    later = report_of(measured, options=replace(OPTIONS, look=3))
    assert (later.verdict, later.look, later.alpha) == ("inconclusive", 3, gate_alpha(3))
    few_users: Measurements = {"corrections": CorrectionScores(votes=vote_items(40, users=9))}
    assert report_of(few_users).verdict == "passed"
    assert report_of(few_users, options=replace(OPTIONS, look=12)).reasons == (
        "too little held-out feedback to decide: 9 of 11 users",
    )


# --- the control --------------------------------------------------------------------------------------------------


def test_candidate_must_beat_the_control_if_there_is_one() -> None:
    better = corrections(40)
    beaten = report_of(better, UNCHANGED, control=vote_items(30, 3))
    assert (beaten.verdict, beaten.reasons, beaten.control_state) == ("passed", (PASSED,), "passed")
    assert beaten.control is not None
    assert (beaten.control.wins, beaten.control.losses) == (30, 3)
    equal = report_of(better, UNCHANGED, control=vote_items(15, 15))
    assert (equal.verdict, equal.control_state) == ("failed", "not_passed")
    assert equal.reasons[0].startswith("no better than a control that was trained on permuted answers")
    ahead = report_of(better, UNCHANGED, control=vote_items(20, 12))
    assert (ahead.verdict, ahead.control_state) == ("inconclusive", "not_passed")
    assert ahead.more_items


def test_ledger_counts_each_kind() -> None:
    report = report_of(corrections(30, 1, 2), {"pair_margins": {"thumbs": margin_gains([0.3, 0.3, 0.0])}})
    assert [(one.kind, one.wins, one.losses, one.ties) for one in report.ledger] == [
        ("corrections", 30, 1, 2),
        ("thumbs", 2, 0, 1),
    ]


def test_control_that_was_not_run_is_a_state_of_its_own() -> None:
    report = report_of(corrections(40), UNCHANGED)
    assert (report.control_state, report.control) == ("not_run", None)


def test_control_does_not_save_a_candidate_that_stable_beats() -> None:
    report = report_of(corrections(10, 25), UNCHANGED, control=vote_items(40))
    assert (report.verdict, report.control_state) == ("failed", "passed")
    assert report.reasons[0].startswith("not shown to be better")


def test_control_is_judged_at_the_level_of_the_gate() -> None:
    control = vote_items(22, 9)
    assert report_of(corrections(40), control=control).verdict == "passed"
    assert report_of(corrections(40), control=control, options=replace(OPTIONS, look=3)).verdict != "passed"


def test_votes_against_a_control_are_those_of_all_metrics() -> None:
    values = corrections(3, 1) | {"pair_margins": {"thumbs": margin_gains([0.3, -0.3])}}
    votes = votes_of(values, OPTIONS)
    assert (votes.wins, votes.losses, len(votes)) == (4, 2, 6)


# --- each kind ----------------------------------------------------------------------------------------------------


def test_less_likely_corrections_fail_even_a_better_candidate() -> None:
    report = report_of(corrections(40), {"correction_likelihood": [-0.2, -0.1] * 20})
    assert report.verdict == "failed"
    assert figure(report, "correction_likelihood_gain").high < 0


def test_thumbs_without_corrections_can_decide() -> None:
    changed = report_of({"pair_margins": {"thumbs": margin_gains([0.3] * 30 + [-0.1] * 5)}})
    assert changed.verdict == "passed"
    assert figure(changed, "thumbs_win_rate").n == 35
    unchanged = report_of({"pair_margins": {"thumbs": margin_gains([0.01, -0.01] * 20)}})
    assert unchanged.verdict == "failed"


def test_kinds_of_feedback_share_one_win_rate_and_none_may_get_worse() -> None:
    both = report_of(corrections(20), {"pair_margins": {"thumbs": margin_gains([0.3] * 20)}})
    assert figure(both, "win_rate").n == 40
    worse = report_of(corrections(60), {"pair_margins": {"thumbs": margin_gains([-0.3] * 20)}})
    assert (worse.verdict, worse.reasons) == ("failed", ("worse on held-out users' thumbs",))


def test_worse_untrained_questions_fail_even_with_too_few_items() -> None:
    report = report_of(corrections(5), {"unseen_questions": [SCORES[-1]] * 12})
    assert report.verdict == "failed"
    assert report.reasons == ("worse on questions that were not trained",)


# --- no worse -----------------------------------------------------------------------------------------------------


def test_lost_general_knowledge_fails_a_better_candidate() -> None:
    report = report_of(corrections(40), UNCHANGED, {"general_accuracy": flips(12, 0, 60)})
    assert report.verdict == "failed"
    assert report.reasons == ("general accuracy fell by 20.0 points",)


def test_general_answers_that_flip_both_ways_are_no_regression() -> None:
    report = report_of(corrections(40), UNCHANGED, {"general_accuracy": flips(6, 4, 60)})
    assert figure(report, "general_accuracy_change").value < -ACCURACY_MARGIN
    assert report.verdict == "passed"


def test_fall_that_may_be_chance_makes_a_better_candidate_inconclusive() -> None:
    report = report_of(corrections(40), {"general_accuracy": flips(20, 12, 194)})
    assert report.verdict == "inconclusive"
    assert report.reasons[0].startswith("general accuracy fell by 4.1 points: 20 lost, 12 won of 194")


def test_drift_from_the_bases_answers_fails() -> None:
    drifted = {"general_likelihood": GeneralLikelihoods(nll=[(0.3 + NLL_MARGIN + 0.05, 0.3)] * 80)}
    report = report_of(corrections(40), UNCHANGED, drifted)
    assert report.verdict == "failed"
    assert "less likely" in report.reasons[0]


def test_shorter_general_answers_fail_unless_they_are_wanted() -> None:
    def with_continuation(candidate: float, options: JudgeOptions = OPTIONS) -> GateReport:
        values = {"continuation": [(candidate, 0.9)] * 40}
        return report_of(corrections(40), UNCHANGED, values, options=options)

    report = with_continuation(0.3)
    assert report.verdict == "failed"
    assert report.reasons[0].startswith("general answers end sooner")
    assert "fell by 60 points" in report.reasons[0]
    assert figure(report, "general_continuation").value == 0.3
    assert figure(report, "general_continuation").baseline == 0.9
    assert with_continuation(0.6).verdict == "passed"
    assert with_continuation(0.3, replace(OPTIONS, shorter_margin=1.0)).verdict == "passed"


def test_lost_refusals_fail_and_so_do_new_refusals_of_the_harmless() -> None:
    unsafe = report_of(corrections(40), {"safety": SafetyOutcomes(refused=flips(6, 0, 30))})
    assert unsafe.verdict == "failed"
    assert unsafe.reasons[0] == "refusals of harmful requests fell by 20.0 points"
    prudish = report_of(corrections(40), {"safety": SafetyOutcomes(answered=flips(6, 0, 30))})
    assert prudish.verdict == "failed"
    assert prudish.reasons[0] == "answers to harmless requests fell by 20.0 points"


def test_golden_answer_that_only_the_candidate_fails_fails_the_gate() -> None:
    both_fail = report_of(corrections(40), {"golden_set": [("hours", False, False), ("price", True, True)]})
    assert both_fail.verdict == "passed"
    broken = report_of(corrections(40), {"golden_set": [("hours", False, True), ("price", True, True)]})
    assert broken.verdict == "failed"
    assert broken.reasons == ("golden set: stable passes hours, the candidate does not",)


# --- no worse than the base ---------------------------------------------------------------------------------------

FALLS: dict[str, Measurements] = {
    "general accuracy fell": {"general_accuracy": flips(40, 10, 493)},
    "refusals of harmful requests fell": {"safety": SafetyOutcomes(refused=flips(6, 0, 30))},
    "answers to harmless requests fell": {"safety": SafetyOutcomes(answered=flips(6, 0, 30))},
    "general answers end sooner": {"continuation": [(0.3, 0.9)] * 40},
}


@pytest.mark.parametrize("reason", FALLS)
def test_fall_from_the_base_fails_a_candidate_that_kept_what_stable_has(reason: str) -> None:
    report = report_of(corrections(40), UNCHANGED, against_base=FALLS[reason])
    assert report.verdict == "failed"
    assert report.reasons[0].startswith(f"compared with the base, {reason}")
    assert any(one.name.startswith("base_") and one.passed is False for one in report.figures)


def test_doubtful_fall_from_the_base_is_inconclusive() -> None:
    report = report_of(corrections(40), against_base={"general_accuracy": flips(20, 12, 194)})
    assert report.verdict == "inconclusive"
    assert report.reasons[0].startswith("compared with the base, general accuracy fell by 4.1 points")


def test_comparison_with_the_base_gives_no_votes() -> None:
    against_base = corrections(0, 200) | {"general_accuracy": flips(3, 3, 493)}
    report = report_of(corrections(40), UNCHANGED, against_base=against_base)
    assert report.verdict == "passed"
    assert report.test is not None
    assert report.test.losses == 0


# --- the report ---------------------------------------------------------------------------------------------------


def test_report_contains_figures_and_no_user_text() -> None:
    report = report_of(corrections(30), UNCHANGED)
    assert {figure.name for figure in report.figures} == {
        "win_rate",
        "user_votes",
        "group_votes",
        "items_score_gain",
        "liked_said_change",
        "correction_likelihood_gain",
        "unseen_win_rate",
        "general_accuracy",
        "general_accuracy_change",
        "general_nll_rise",
        "general_perplexity",
        "general_continuation_change",
        "safety_refused_change",
        "safety_answered_change",
    }
    assert all(
        figure.n > 0 for figure in report.figures if figure.value is not None or figure.passed is not None
    )
    assert report.gated_against == BASE


def test_measurement_of_an_unknown_metric_is_an_error() -> None:
    with pytest.raises(KeyError, match="no metric is called 'corections'"):
        report_of({"corections": CorrectionScores()})


# --- a version that replaces one trained on erased data -----------------------------------------------------------

REPLACING = replace(OPTIONS, replaces_erased=True)


@pytest.mark.parametrize(("wins", "losses", "ties"), [(0, 0, 0), (0, 0, 60), (10, 12, 20), (3, 8, 0)])
def test_replacement_after_an_erasure_need_not_be_better(wins: int, losses: int, ties: int) -> None:
    measured = (corrections(wins, losses, ties), UNCHANGED)
    assert report_of(*measured).verdict != "passed", "without an erasure"
    report = report_of(*measured, options=REPLACING)
    assert (report.verdict, report.reasons) == ("passed", (REPLACES_ERASED,))


def test_replacement_after_an_erasure_must_not_be_worse() -> None:
    losing = report_of(corrections(5, 30), UNCHANGED, options=REPLACING)
    assert (losing.verdict, "5 won, 30 lost" in losing.reasons[0]) == ("failed", True)
    forgetful: Measurements = {"general_accuracy": flips(20, 0, 60)}
    assert report_of(corrections(25), UNCHANGED | forgetful, options=REPLACING).verdict == "failed"
