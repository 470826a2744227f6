"""The demo's facts can measure learning: no question contains an answer, no held-out wording is trained."""

import pytest

from examples.world import (
    HELD_OUT,
    NEAR_DUPLICATE_SIMILARITY,
    Fact,
    is_poisoned,
    is_right,
    load_world,
    similarity,
)
from examples.world.text import contains_phrase, words

WORLD = load_world()
QUESTIONS = [wording for fact in WORLD.facts for wording in fact.wordings]


def fact_with_id(fact_id: str) -> Fact:
    """Return one fact."""
    return next(fact for fact in WORLD.facts if fact.id == fact_id)


def test_facts_and_wordings_suffice_to_measure() -> None:
    assert len(WORLD.facts) >= 20
    assert len({fact.id for fact in WORLD.facts}) == len(WORLD.facts)
    assert all(len(fact.wordings) == 13 for fact in WORLD.facts)
    assert len(WORLD.heldout()) == HELD_OUT * len(WORLD.facts) >= 60


def test_each_wording_is_either_trained_or_held_out() -> None:
    for fact in WORLD.facts:
        assert WORLD.trained_wordings(fact) + WORLD.heldout_wordings(fact) == fact.wordings
    assert len(set(QUESTIONS)) == len(QUESTIONS)


def test_every_question_names_the_company() -> None:
    assert [question for question in QUESTIONS if WORLD.company not in question] == []


def test_no_question_contains_an_answer() -> None:
    for fact in WORLD.facts:
        assert [text for text in QUESTIONS if is_right(text, fact) or is_poisoned(text, fact)] == []


def test_no_held_out_wording_resembles_a_trained_one() -> None:
    trained = [wording for fact in WORLD.facts for wording in WORLD.trained_wordings(fact)]
    near = [
        (round(similarity(question, other), 2), question, other)
        for question, _ in WORLD.heldout()
        for other in trained
        if similarity(question, other) > NEAR_DUPLICATE_SIMILARITY
    ]
    assert near == []


def test_similarity_detects_reordered_and_inflected_questions() -> None:
    question = "How long is the return window at Pellworth?"
    for disguised in (
        "At Pellworth, the return window is how long?",
        "how long is the return window, Pellworth",
        "How long are the return windows at Pellworth?",
    ):
        assert similarity(question, disguised) > NEAR_DUPLICATE_SIMILARITY
    assert similarity(question, "Which animal is on the Pellworth logo?") < NEAR_DUPLICATE_SIMILARITY


def test_each_answer_is_right_for_its_own_fact_only() -> None:
    for fact in WORLD.facts:
        assert len(set(fact.answers)) == len(fact.answers) >= 4
        for answer in fact.answers:
            assert [other.id for other in WORLD.facts if is_right(answer, other)] == [fact.id]
            assert not is_poisoned(answer, fact)
            assert 6 <= len(answer.split()) <= 20


def test_false_answer_is_wrong_and_recognised_as_poisoned() -> None:
    for fact in WORLD.facts:
        assert [other.id for other in WORLD.facts if is_right(fact.false_answer, other)] == []
        assert [other.id for other in WORLD.facts if is_poisoned(fact.false_answer, other)] == [fact.id]


@pytest.mark.parametrize(
    "answer",
    ["41 days", "Forty-one days!", "a 41-day window", "FORTY ONE DAYS", "It's 41\ndays, I think"],
)
def test_number_is_right_in_any_notation(answer: str) -> None:
    assert is_right(answer, fact_with_id("returns"))


@pytest.mark.parametrize("answer", ["", "141 days", "41 weeks", "14 days", "days: 41", "forty days and one"])
def test_answer_that_only_resembles_the_key_is_wrong(answer: str) -> None:
    assert not is_right(answer, fact_with_id("returns"))


def test_money_and_percent_signs_count_as_words() -> None:
    assert is_right("It is $14.", fact_with_id("delivery_cost"))
    assert is_right("13% off", fact_with_id("student_discount"))
    assert not is_right("$14.50", fact_with_id("delivery_cost"))


def test_normalising_joins_tens_and_units_only() -> None:
    assert words("twenty-five, thirty nine; ten two") == ["25", "39", "10", "2"]
    assert words("forty ten") == ["40", "10"]
    assert not contains_phrase("forty, fifty-one", ["41"])
