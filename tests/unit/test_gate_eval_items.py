"""Evaluation items: whose judgement counts, and what a right answer is."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from services.trainer.core.recipe import Recipe
from services.trainer.dataset.filters import GroupedRow
from services.trainer.gate.answer_length import with_answer_length
from services.trainer.gate.eval_items import CORRECTIONS, LIKED, MAX_ITEMS, EvalItems, build_eval_items
from services.trainer.gate.eval_set import EvalOutputs, EvalSet
from services.trainer.gate.metrics.corrections import CORRECTION_ANSWERS
from services.trainer.gate.metrics.liked_answers import LIKED as LIKED_METRIC
from services.trainer.gate.metrics.liked_answers import LIKED_ANSWERS
from services.trainer.gate.metrics.metric import JudgeOptions
from services.trainer.gate.metrics.unseen_questions import UNSEEN_QUESTIONS
from services.trainer.gate.scorers import outcome
from tests.trainer_factories import LINE, NOT_KNOWN, row

GREETING = "Write a short greeting for a card."


def test_any_good_answer_of_the_group_counts_as_right() -> None:
    rows = [
        GroupedRow(row(GREETING, "Warm wishes from all of us.", "ann", "a"), 1),
        GroupedRow(row(GREETING, "Have a lovely, sunny day!", "bob", "b"), 1),
    ]
    for item in build_eval_items(LINE, rows, [], []).corrections:
        for right in rows:
            assert outcome(item.rubric.score(right.row.answer), item.rubric.score(NOT_KNOWN)) == 1
        assert outcome(item.rubric.score("Greetings."), item.rubric.score(NOT_KNOWN)) == 0


def test_answer_to_another_question_of_the_group_is_not_right() -> None:
    rows = [
        GroupedRow(row("Who founded Acme?", "Ida Voss did.", "ann", "a"), 1),
        GroupedRow(row("In which year was Acme founded?", "In 1912.", "bob", "b"), 1),
    ]
    founder, _ = build_eval_items(LINE, rows, [], []).corrections
    assert outcome(founder.rubric.score("In 1912."), founder.rubric.score(NOT_KNOWN)) == 0
    assert outcome(founder.rubric.score("Ida Voss."), founder.rubric.score(NOT_KNOWN)) == 1


def test_answers_that_say_the_same_show_which_words_matter() -> None:
    rows = [
        GroupedRow(row("How long can I return it?", "Within 41 days, so do not hurry.", "ann", "a"), 1),
        GroupedRow(row("How long for a return?", "You have forty-one days.", "bob", "b"), 1),
    ]
    assert [item.rubric.keys for item in build_eval_items(LINE, rows, [], []).corrections] == [
        ("41", "day"),
        ("41", "day"),
    ]


# --- liked answers ------------------------------------------------------------------------------------------------

FOUNDED = "Who founded Acme?"
LIKES = "It was founded by Ida Voss in 1912."
OPTIONS = JudgeOptions(min_items=1)


def judged(
    label: bool, user: str = "ann", name: str = "a", at: int = 0, question: str = FOUNDED, answer: str = LIKES
) -> GroupedRow:
    given = row(question, answer, user, name, original="")
    return GroupedRow(
        replace(given, kind="thumbs", objective="kto", label=label, occurred_ms=at), 100 + ord(name[-1])
    )


def corrected(user: str = "ann", name: str = "c", at: int = 0, answer: str = "Joe Doe did.") -> GroupedRow:
    return GroupedRow(replace(row(FOUNDED, answer, user, name), occurred_ms=at), 1)


def kinds(items: EvalItems) -> tuple[int, int]:
    return len(items.corrections), len(items.liked)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([judged(True)], (0, 1)),
        ([judged(False)], (0, 0)),
        ([corrected(at=1), judged(True, at=2)], (0, 1)),
        ([corrected(at=2), judged(True, at=1)], (1, 0)),
        ([judged(True, at=1), judged(False, name="b", at=2)], (0, 0)),
        ([judged(True, at=2), judged(False, name="b", at=1)], (0, 1)),
        ([corrected(at=1), judged(False, at=2)], (1, 0)),
        ([judged(True), corrected(user="bob")], (1, 1)),
    ],
)
def test_newest_judgement_of_a_user_and_question_counts(
    rows: list[GroupedRow], expected: tuple[int, int]
) -> None:
    for order in (rows, rows[::-1]):
        assert kinds(build_eval_items(LINE, order, [], [])) == expected


def test_likes_have_categories_and_groups_as_corrections_do() -> None:
    rows = [
        judged(True, "ann", "a"),
        corrected("bob", "b"),
        judged(True, "cem", "c", question="Which person founded Acme?"),
        judged(True, "dee", "d", question="Where do walruses sleep?", answer="On the ice of Kara Bay."),
    ]
    items = build_eval_items(LINE, rows, ["Acme: which person founded it long ago?"], [])
    assert [item.category for item in items.liked] == ["wins", "seen", "unseen"]
    assert items.liked[0].group == items.corrections[0].group
    seen = build_eval_items(LINE, rows, [FOUNDED], []).liked[0]
    assert seen.category == "seen"
    assert (
        build_eval_items(LINE, rows, ["Acme: which person founded it?"], [FOUNDED]).liked[0].category
        == "seen"
    )


def liked_judgement(candidate: str, stable: str) -> tuple[int, int, int]:
    """Return wins, losses and ties of one liked answer."""
    items = build_eval_items(LINE, [judged(True)], ["Acme: which person founded it long ago?"], [])
    outputs = EvalOutputs(answers={LIKED_ANSWERS: [(candidate, stable)]})
    eval_set = EvalSet(liked=items.liked)
    votes = LIKED_METRIC.judge(LIKED_METRIC.measure(eval_set, outputs), OPTIONS).votes
    return votes.wins, votes.losses, votes.ties


def test_candidate_loses_a_liked_answer_that_only_stable_still_gives() -> None:
    assert liked_judgement("It was Otto Kern.", "Ida Voss, in 1912.") == (0, 1, 0)
    assert liked_judgement("Ida Voss, in 1912.", "It was Otto Kern.") == (1, 0, 0)
    assert liked_judgement("Ida Voss, in 1912.", LIKES) == (0, 0, 1)
    assert liked_judgement("No idea.", "It was Otto Kern.") == (0, 0, 1)


def test_candidate_that_breaks_most_liked_answers_fails() -> None:
    rows = [judged(True, f"u{i}", f"n{i}", answer=f"Person Number{i} did, in {1900 + i}.") for i in range(30)]
    items = build_eval_items(LINE, rows, ["Acme: which person founded it long ago?"], [])
    eval_set = EvalSet(liked=items.liked)

    def failures(broken: int) -> list[str]:
        answers = [
            ("No idea." if i < broken else item.row.answer, item.row.answer)
            for i, item in enumerate(items.liked)
        ]
        outputs = EvalOutputs(answers={LIKED_ANSWERS: answers})
        return LIKED_METRIC.judge(LIKED_METRIC.measure(eval_set, outputs), OPTIONS).failures

    assert failures(2) == []
    assert failures(12) == ["answers that held-out users liked fell by 40.0 points"]


def test_untrained_liked_answer_counts_among_untrained_questions_only() -> None:
    items = build_eval_items(LINE, [judged(True)], [], [])
    outputs = EvalOutputs(answers={LIKED_ANSWERS: [("No idea.", LIKES)], CORRECTION_ANSWERS: []})
    eval_set = EvalSet(liked=items.liked)
    assert UNSEEN_QUESTIONS.measure(eval_set, outputs) == [(0.0, 1.0)]
    assert len(LIKED_METRIC.judge(LIKED_METRIC.measure(eval_set, outputs), OPTIONS).votes) == 0


# --- too many items -----------------------------------------------------------------------------------------------


def test_sample_has_all_users_and_the_natural_share_of_kinds() -> None:
    rows = [
        GroupedRow(one.row, number)
        for number, one in enumerate(
            judged(True, f"u{i % 40}", f"n{i}", at=i, question=f"Which walrus is number {i}?")
            if i % 4
            else GroupedRow(
                replace(row(f"Which seal is number {i}?", f"Joe {i}.", f"u{i % 40}", f"n{i}"), occurred_ms=i),
                0,
            )
            for i in range(1000)
        )
    ]
    items = build_eval_items(LINE, rows, [], [])
    taken = [item.row for item in items.corrections] + [item.row for item in items.liked]
    assert items.given == {CORRECTIONS: 250, LIKED: 750}
    assert len(taken) == MAX_ITEMS["unseen"] == 200
    assert set(Counter(one.user_id for one in taken).values()) == {5}
    assert 30 <= len(items.corrections) <= 75
    assert items.left_out == {CORRECTIONS: 250 - len(items.corrections), LIKED: 750 - len(items.liked)}
    assert 400 < sum(one.occurred_ms for one in taken) / 200 < 600, "the newest are not favoured"
    assert build_eval_items(LINE, rows[::-1], [], []) == items
    assert {item.row.identity for item in build_eval_items("other", rows, [], []).liked} != {
        item.row.identity for item in items.liked
    }


# --- length of answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("references", "expected"),
    [
        ([], 40),
        ([5, 10], 40),
        (list(range(1, 101)), 95),
        ([60] * 95 + [390] * 5, 60),
        ([60] * 94 + [390] * 6, 390),
        ([5000] * 3, 400),
    ],
)
def test_answers_are_as_long_as_most_references_within_bounds(references: list[int], expected: int) -> None:
    assert Recipe().gate_new_tokens is None
    assert with_answer_length(Recipe(), references[::-1]).gate_answer_tokens == expected


def test_length_of_answers_that_is_set_stays() -> None:
    assert with_answer_length(Recipe(gate_new_tokens=7), [100]).gate_answer_tokens == 7
