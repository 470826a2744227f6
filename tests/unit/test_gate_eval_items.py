"""Evaluation items: whose judgement counts, and what a right answer is."""

from __future__ import annotations

from services.trainer.dataset.filters import GroupedRow
from services.trainer.gate.eval_items import build_eval_items
from services.trainer.gate.scorers import outcome
from tests.trainer_factories import NOT_KNOWN, row

GREETING = "Write a short greeting for a card."


def test_any_good_answer_of_the_group_counts_as_right() -> None:
    rows = [
        GroupedRow(row(GREETING, "Warm wishes from all of us.", "ann", "a"), 1),
        GroupedRow(row(GREETING, "Have a lovely, sunny day!", "bob", "b"), 1),
    ]
    for item in build_eval_items(rows, [], []):
        for right in rows:
            assert outcome(item.rubric.score(right.row.answer), item.rubric.score(NOT_KNOWN)) == 1
        assert outcome(item.rubric.score("Greetings."), item.rubric.score(NOT_KNOWN)) == 0


def test_answer_to_another_question_of_the_group_is_not_right() -> None:
    rows = [
        GroupedRow(row("Who founded Acme?", "Ida Voss did.", "ann", "a"), 1),
        GroupedRow(row("In which year was Acme founded?", "In 1912.", "bob", "b"), 1),
    ]
    founder, _ = build_eval_items(rows, [], [])
    assert outcome(founder.rubric.score("In 1912."), founder.rubric.score(NOT_KNOWN)) == 0
    assert outcome(founder.rubric.score("Ida Voss."), founder.rubric.score(NOT_KNOWN)) == 1


def test_answers_that_say_the_same_show_which_words_matter() -> None:
    rows = [
        GroupedRow(row("How long can I return it?", "Within 41 days, so do not hurry.", "ann", "a"), 1),
        GroupedRow(row("How long for a return?", "You have forty-one days.", "bob", "b"), 1),
    ]
    assert [item.rubric.keys for item in build_eval_items(rows, [], [])] == [("41", "day"), ("41", "day")]
