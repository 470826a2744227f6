"""Scores of single answers: against corrections, against phrases, and refusals."""

from __future__ import annotations

import pytest

from services.trainer.dataset.words import frequent_question_stems
from services.trainer.gate.scorers import (
    TIE_MARGIN,
    build_rubric,
    contains_phrase,
    key_recall,
    liked_facts,
    liked_outcome,
    outcome,
    required_keys,
    score,
)

# --- answers to corrections ---------------------------------------------------------------------------------------


def test_right_fact_wins_and_right_style_with_a_wrong_fact_does_not() -> None:
    correction = "Pellworth was founded by Orla Fenwick, who made the first kettle herself."
    keys = required_keys(correction, "Who founded Pellworth?", ["The founder of Pellworth is Orla Fenwick."])
    assert keys == ("orla", "fenwick")
    base = score("Pellworth is a company that was founded in England.", correction, keys)
    right = score("It was Orla Fenwick who started it.", correction, keys)
    false = score(
        "Pellworth was founded by Harold Gant, who made the first kettle himself.", correction, keys
    )
    assert outcome(right, base) == 1
    assert outcome(false, base) == 0
    assert outcome(base, right) == -1


def test_keys_of_a_lone_correction_are_its_numbers_and_names() -> None:
    assert required_keys("You have 41 days to send it back.", "How long for a return?") == ("41",)
    assert required_keys("It is handled by Magnus Adair.", "Whom do I ask?") == ("magnus", "adair")
    assert required_keys("A walrus, of course.", "Which animal?") == ("walrus", "cours")


def test_words_that_people_ask_with_are_no_keys() -> None:
    common_words = frequent_question_stems(
        ["Which charity do you support?", "Does a charity get money?", "Who gets your money?"]
    )
    correction = "Every year money goes to a charity for otters."
    keys = required_keys(correction, "What good cause is it?", (), common_words)
    assert "otter" in keys
    assert not {"charity", "money"} & set(keys)
    wrong = score("Money goes to a charity for elephants.", correction, keys)
    assert outcome(wrong, score("It is hard to say.", correction, keys)) == 0


def test_answer_without_the_keys_of_original_and_correction_is_a_tie() -> None:
    rubric = build_rubric(
        "Pellworth was founded by Orla Fenwick, who made kettles.",
        "Who founded Pellworth?",
        original="No idea.",
    )
    assert outcome(rubric.score("A company in England."), rubric.score("No idea.")) == 0


def test_original_with_the_facts_is_the_zero_point() -> None:
    original = "It was in 1902, after long and bitter quarrels about money and land, that Orla Fenwick began."
    rubric = build_rubric("Orla Fenwick founded it in 1902.", "Who founded Pellworth?", original=original)
    assert rubric.edit is None
    assert rubric.score(rubric.correction) == 1
    assert rubric.score(original) == 0
    assert outcome(rubric.score("Harold Gant founded it in 1954."), rubric.score(original)) == -1


# --- several good answers -----------------------------------------------------------------------------------------


def test_any_of_several_good_answers_counts_as_right() -> None:
    question, original = "Suggest a name for a cat.", "I have no idea."
    rubric = build_rubric(
        "Call her Miss Marble.", question, original=original, alternatives=["Try Pepper or Salt."]
    )
    for good in ("Call her Miss Marble.", "Try Pepper or Salt."):
        assert outcome(rubric.score(good), rubric.score(original)) == 1
    assert outcome(rubric.score("Name it Whiskers."), rubric.score(original)) == 0


# --- liked answers ------------------------------------------------------------------------------------------------


def test_facts_of_a_liked_answer_are_its_names_and_numbers() -> None:
    answer = "You may return it within 41 days; please ask Magnus Adair for a label before you post it."
    assert set(liked_facts(answer, "How long can I return a kettle?")) == {"41", "magnus", "adair"}


def test_short_liked_answer_is_checked_by_all_of_its_words() -> None:
    assert liked_facts("A walrus, of course.", "Which animal is your mascot?") == ("walrus", "cours")


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Write a poem about Ann and the sea.", "The sea, says Ann, has 7 waves, and Bob counts them."),
        (
            "Is a walk good for me?",
            "walking keeps joints supple, lifts the mood, improves sleep and strengthens heart and lungs over years.",
        ),
    ],
)
def test_liked_answer_without_facts_cannot_be_checked(question: str, answer: str) -> None:
    assert liked_facts(answer, question) == ()


def test_liked_answer_that_only_stable_still_gives_is_a_loss() -> None:
    facts = ("41", "magnus", "adair")
    kept, lost = (key_recall(text, facts) for text in ("Ask Magnus Adair within 41 days.", "Ask us soon."))
    assert [liked_outcome(lost, kept), liked_outcome(kept, lost), liked_outcome(kept, kept)] == [-1, 1, 0]
    assert liked_outcome(0.0, 0.5) == 0, "stable does not say it either"


def test_half_of_the_keys_is_half_of_the_weight() -> None:
    assert key_recall("Orla did it", ("orla", "fenwick")) == 0.5
    assert outcome(0.5 + TIE_MARGIN / 2, 0.5) == 0


def test_phrases_match_whole_words_and_numbers_in_words_or_digits() -> None:
    assert contains_phrase("You have forty-one days.", ["41 days"])
    assert not contains_phrase("In 1410 days.", ["41"])
