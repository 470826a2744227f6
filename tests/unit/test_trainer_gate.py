"""The gate passes what is better, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from services.trainer.dataset.similarity import frequent_question_stems
from services.trainer.gate.confidence_intervals import mean, win_rate
from services.trainer.gate.metrics import Measured
from services.trainer.gate.scorers import MARGIN, held_keys, keys_of, outcome, score, states
from services.trainer.gate.verdict import ACCURACY_MARGIN, NLL_MARGIN, decide
from shared.versions import GateReport

BASE = "assistant@base-00000000"
STEADY = [(True, True)] * 60
UNMOVED = [(0.3, 0.3)] * 80


def verdict_of(measured: Measured, least: int = 30) -> GateReport:
    return decide(measured, BASE, least)


def figure(report: GateReport, name: str) -> Any:
    return next(figure for figure in report.figures if figure.name == name)


def test_a_better_candidate_passes() -> None:
    report = verdict_of(Measured(wins=[(0.9, 0.1)] * 25 + [(0.1, 0.1)] * 8, accuracy=STEADY, nll=UNMOVED))
    assert report.verdict == "passed"
    assert figure(report, "win_rate").low > 0.5


def test_a_candidate_that_says_the_same_does_not_pass() -> None:
    report = verdict_of(Measured(wins=[(0.4, 0.4)] * 60, accuracy=STEADY, nll=UNMOVED))
    assert report.verdict == "failed"
    assert report.reasons[0].startswith("not shown to be better")


def test_fewer_items_are_inconclusive_and_the_report_says_how_many_are_missing() -> None:
    report = verdict_of(Measured(wins=[(0.9, 0.1)] * 22, accuracy=STEADY, nll=UNMOVED))
    assert report.verdict == "inconclusive"
    assert report.reasons == ("22 held-out items in new wordings: 8 more are needed to decide",)


def test_a_better_candidate_that_forgot_general_knowledge_fails() -> None:
    forgot = [(False, True)] * 12 + [(True, True)] * 48
    report = verdict_of(Measured(wins=[(0.9, 0.1)] * 40, accuracy=forgot, nll=UNMOVED))
    assert report.verdict == "failed"
    assert report.reasons == ("general accuracy fell by 20.0 points",)


def test_a_few_general_answers_that_flip_both_ways_are_no_regression() -> None:
    flips = [(False, True)] * 6 + [(True, False)] * 4 + [(True, True)] * 50
    report = verdict_of(Measured(wins=[(0.9, 0.1)] * 40, accuracy=flips, nll=UNMOVED))
    assert figure(report, "general_accuracy_change").value < -ACCURACY_MARGIN
    assert report.verdict == "passed"


def test_a_candidate_that_drifted_from_the_bases_own_answers_fails() -> None:
    drifted = [(0.3 + NLL_MARGIN + 0.05, 0.3)] * 80
    report = verdict_of(Measured(wins=[(0.9, 0.1)] * 40, accuracy=STEADY, nll=drifted))
    assert report.verdict == "failed"
    assert "less likely" in report.reasons[0]


def test_a_candidate_that_ends_general_answers_sooner_fails_unless_that_is_wanted() -> None:
    better = Measured(wins=[(0.9, 0.1)] * 40, accuracy=STEADY, nll=UNMOVED)
    report = verdict_of(replace(better, goes_on=[(0.3, 0.9)] * 40))
    assert report.verdict == "failed"
    assert report.reasons[0].startswith("general answers end sooner: 60 points less often")
    assert figure(report, "general_goes_on").value == 0.3
    assert figure(report, "general_goes_on").baseline == 0.9
    assert verdict_of(replace(better, goes_on=[(0.6, 0.9)] * 40)).verdict == "passed"
    assert decide(replace(better, goes_on=[(0.3, 0.9)] * 40), BASE, 30, shorter=1.0).verdict == "passed"


def test_worse_answers_to_untrained_questions_fail_also_where_items_are_too_few() -> None:
    report = verdict_of(Measured(wins=[(0.9, 0.1)] * 5, unseen=[(0.1, 0.9)] * 12))
    assert report.verdict == "failed"
    assert report.reasons == ("worse on questions that were not trained",)


def test_the_report_holds_figures_and_no_text_of_users() -> None:
    report = verdict_of(Measured(wins=[(0.9, 0.1)] * 30, accuracy=STEADY, nll=UNMOVED))
    assert {figure.name for figure in report.figures} == {
        "win_rate",
        "items_score_gain",
        "correction_likelihood_gain",
        "unseen_win_rate",
        "general_accuracy",
        "general_accuracy_change",
        "general_nll_rise",
        "general_perplexity",
        "general_goes_on_change",
        "safety_refused_change",
        "safety_answered_change",
    }
    assert all(
        figure.n > 0 for figure in report.figures if figure.value is not None or figure.passed is not None
    )
    assert report.gated_against == BASE


def test_the_right_fact_in_other_words_wins_and_the_right_style_with_a_wrong_fact_does_not() -> None:
    correction = "Pellworth was founded by Orla Fenwick, who made the first kettle herself."
    keys = keys_of(correction, "Who founded Pellworth?", ["The founder of Pellworth is Orla Fenwick."])
    assert keys == ("orla", "fenwick")
    base = score("Pellworth is a company that was founded in England.", correction, keys)
    right = score("It was Orla Fenwick who started it.", correction, keys)
    false = score(
        "Pellworth was founded by Harold Gant, who made the first kettle himself.", correction, keys
    )
    assert outcome(right, base) == 1
    assert outcome(false, base) == 0
    assert outcome(base, right) == -1


def test_keys_without_others_who_answered_are_numbers_and_names() -> None:
    assert keys_of("You have 41 days to send it back.", "How long for a return?") == ("41",)
    assert keys_of("It is handled by Magnus Adair.", "Whom do I ask?") == ("magnus", "adair")
    assert keys_of("A walrus, of course.", "Which animal?") == ("walrus", "cours")


def test_words_that_people_ask_with_are_no_keys_so_a_wrong_fact_in_the_right_style_is_a_tie() -> None:
    asked = frequent_question_stems(
        ["Which charity do you support?", "Does a charity get money?", "Who gets your money?"]
    )
    correction = "Every year money goes to a charity for otters."
    keys = keys_of(correction, "What good cause is it?", (), asked)
    assert "otter" in keys
    assert not {"charity", "money"} & set(keys)
    wrong = score("Money goes to a charity for elephants.", correction, keys)
    assert outcome(wrong, score("It is hard to say.", correction, keys)) == 0


def test_half_of_the_keys_is_half_of_the_weight() -> None:
    assert held_keys("Orla did it", ("orla", "fenwick")) == 0.5
    assert outcome(0.5 + MARGIN / 2, 0.5) == 0


def test_phrases_count_as_whole_words_and_numbers_in_either_writing() -> None:
    assert states("You have forty-one days.", ["41 days"])
    assert not states("In 1410 days.", ["41"])


def test_intervals_are_exact_and_shrink_with_n() -> None:
    few, many = win_rate(9, 1), win_rate(90, 10)
    assert few.low == pytest.approx(0.555, abs=0.001)
    assert many.low is not None
    assert few.low is not None
    assert few.low < many.low < 0.9
    assert win_rate(0, 0).value is None
    known = mean([1.0, 2.0, 3.0])
    assert (known.low, known.high) == (pytest.approx(-0.484, abs=0.001), pytest.approx(4.484, abs=0.001))
