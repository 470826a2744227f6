"""The demo's facts measure learning only if no question gives its answer away and no test was trained."""

import pytest

from examples.world import HELD_OUT, NEAR_DUPLICATE, Fact, closeness, is_poisoned, is_right, load_world
from examples.world.text import says, words

WORLD = load_world()
QUESTIONS = [wording for fact in WORLD.facts for wording in fact.wordings]


def a_fact(fact_id: str) -> Fact:
    return next(fact for fact in WORLD.facts if fact.id == fact_id)


def test_there_are_enough_facts_and_wordings_to_measure_with() -> None:
    assert len(WORLD.facts) >= 20
    assert len({fact.id for fact in WORLD.facts}) == len(WORLD.facts)
    assert all(len(fact.wordings) == 13 for fact in WORLD.facts)
    assert len(WORLD.heldout()) == HELD_OUT * len(WORLD.facts) >= 60


def test_trained_and_held_out_wordings_are_all_wordings_once() -> None:
    for fact in WORLD.facts:
        assert WORLD.trained_wordings(fact) + WORLD.heldout_wordings(fact) == fact.wordings
    assert len(set(QUESTIONS)) == len(QUESTIONS)


def test_every_question_names_the_company() -> None:
    assert [question for question in QUESTIONS if WORLD.company not in question] == []


def test_no_question_holds_an_answer_true_or_false() -> None:
    for fact in WORLD.facts:
        assert [text for text in QUESTIONS if is_right(text, fact) or is_poisoned(text, fact)] == []


def test_no_held_out_wording_is_close_to_any_trained_wording_of_any_fact() -> None:
    trained = [wording for fact in WORLD.facts for wording in WORLD.trained_wordings(fact)]
    near = [
        (round(closeness(question, other), 2), question, other)
        for question, _ in WORLD.heldout()
        for other in trained
        if closeness(question, other) > NEAR_DUPLICATE
    ]
    assert near == []


def test_the_closeness_bound_catches_a_question_that_is_reordered_inflected_or_only_repunctuated() -> None:
    question = "How long is the return window at Pellworth?"
    for disguised in (
        "At Pellworth, the return window is how long?",
        "how long is the return window, Pellworth",
        "How long are the return windows at Pellworth?",
    ):
        assert closeness(question, disguised) > NEAR_DUPLICATE
    assert closeness(question, "Which animal is on the Pellworth logo?") < NEAR_DUPLICATE


def test_every_way_of_answering_is_right_for_its_own_fact_and_for_no_other() -> None:
    for fact in WORLD.facts:
        assert len(set(fact.answers)) == len(fact.answers) >= 4
        for answer in fact.answers:
            assert [other.id for other in WORLD.facts if is_right(answer, other)] == [fact.id]
            assert not is_poisoned(answer, fact)
            assert 6 <= len(answer.split()) <= 20


def test_a_false_answer_is_wrong_for_every_fact_and_recognised_as_the_poison() -> None:
    for fact in WORLD.facts:
        assert [other.id for other in WORLD.facts if is_right(fact.false_answer, other)] == []
        assert [other.id for other in WORLD.facts if is_poisoned(fact.false_answer, other)] == [fact.id]


@pytest.mark.parametrize(
    "answer",
    ["41 days", "Forty-one days!", "a 41-day window", "FORTY ONE DAYS", "It's 41\ndays, I think"],
)
def test_a_number_is_right_however_it_is_written(answer: str) -> None:
    assert is_right(answer, a_fact("returns"))


@pytest.mark.parametrize("answer", ["", "141 days", "41 weeks", "14 days", "days: 41", "forty days and one"])
def test_an_answer_that_only_resembles_the_key_is_wrong(answer: str) -> None:
    assert not is_right(answer, a_fact("returns"))


def test_signs_for_money_and_percent_count_as_the_words() -> None:
    assert is_right("It is $14.", a_fact("delivery_cost"))
    assert is_right("13% off", a_fact("student_discount"))
    assert not is_right("$14.50", a_fact("delivery_cost"))


def test_normalising_joins_tens_and_units_but_not_two_numbers_in_a_row() -> None:
    assert words("twenty-five, thirty nine; ten two") == ["25", "39", "10", "2"]
    assert words("forty ten") == ["40", "10"]
    assert not says("forty, fifty-one", ["41"])
