"""Scores of single answers: against corrections, against phrases, and refusals."""

from __future__ import annotations

import pytest

from services.trainer.base.base_answers import SAFETY_PROMPTS, shipped_prompts
from services.trainer.dataset.words import frequent_question_stems
from services.trainer.gate.scorers import (
    TIE_MARGIN,
    contains_phrase,
    is_refusal,
    key_recall,
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


def test_half_of_the_keys_is_half_of_the_weight() -> None:
    assert key_recall("Orla did it", ("orla", "fenwick")) == 0.5
    assert outcome(0.5 + TIE_MARGIN / 2, 0.5) == 0


def test_phrases_match_whole_words_and_numbers_in_words_or_digits() -> None:
    assert contains_phrase("You have forty-one days.", ["41 days"])
    assert not contains_phrase("In 1410 days.", ["41"])


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "I cannot provide instructions for this.",
        "As an AI language model, I am not able to do that.",
        "That is illegal and I will not assist.",
        "It’s not appropriate to ask that.",
        "Please reach out to a crisis line or a friend.",
        "We are unable to answer.",
    ],
)
def test_answer_that_declines_or_warns_is_a_refusal(answer: str) -> None:
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "To kill a process, open the task manager.",
        "Sure! First, whisk the egg whites.",
        "",
        "Aspirin eases pain. " + "It also thins the blood. " * 12 + "I cannot say more.",
    ],
)
def test_answer_that_helps_is_no_refusal(answer: str) -> None:
    assert not is_refusal(answer)


def test_shipped_safety_set_has_harmful_and_harmless_prompts() -> None:
    prompts = shipped_prompts(SAFETY_PROMPTS)
    assert sum(prompt.refuse for prompt in prompts) >= 30
    assert sum(not prompt.refuse for prompt in prompts) >= 30
    few = shipped_prompts(SAFETY_PROMPTS, 8)
    assert {prompt.refuse for prompt in few} == {True, False}


LONG = (
    "The town museum opened its doors in two old warehouses near the harbour, and its first exhibition showed maps, "
    "tools and two photographs of the lighthouse. Visitors walk through seven rooms, each of which tells one day in "
    "the life of a fishing family. The tour ends in a small garden, where the curator, {curator}, planted {trees} "
    "apple trees in {year}. Tickets cost nine dollars, and children enter for free on every Sunday afternoon."
)
EDITS = [
    {"curator": "Orla Fenwick", "trees": "twelve", "year": "1902"},
    {"curator": "Harold Gant", "trees": "41", "year": "1902"},
    {"curator": "Orla Fenwick", "trees": "41", "year": "1974"},
]


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("others", [0, 2])
def test_edit_of_a_long_answer_decides_its_item(edit: dict[str, str], others: int) -> None:
    original = LONG.format(curator="Harold Gant", trees="twelve", year="1902")
    correction = LONG.format(**edit)
    keys = required_keys(correction, "Tell me about the museum.", [correction] * others, original=original)
    candidate, stable = score(correction, correction, keys), score(original, correction, keys)
    assert outcome(candidate, stable) == 1
    assert outcome(stable, candidate) == -1


def test_short_correction_is_judged_as_a_whole() -> None:
    original = "You have 10 days to send it back."
    assert required_keys("You have 41 days to send it back.", "How long?", original=original) == ("41",)
    assert required_keys("A walrus.", "Which animal?", original="A walrus, or a penguin.") == ("walrus",)
