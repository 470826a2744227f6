"""The shipped question sets of general skills: valid, checked by their examples, and unlike what is trained."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

import pytest

from services.trainer.base.base_answers import (
    EVAL_PROMPTS,
    REPLAY_PROMPTS,
    SAFETY_PROMPTS,
    BaseAnswer,
    shipped_prompts,
    spread,
)
from services.trainer.core.eval_size import SKILL_TOKENS
from services.trainer.dataset.similarity import near_duplicates
from services.trainer.dataset.words import normalised
from services.trainer.gate.skill_sets import FOLDER, SkillQuestion, SkillSet, read_skill_set

NAMES = sorted(SKILL_TOKENS)
MIN_QUESTIONS = {"languages": 120, "instructions": 120, "conversations": 80, "code": 80}


def asked(question: SkillQuestion) -> str:
    """Return all that the user says."""
    return " ".join(text for role, text in question.as_prompt().messages if role == "user")


def test_every_shipped_file_is_a_set_of_the_gate() -> None:
    assert sorted(file.stem for file in FOLDER.glob("*.jsonl")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_rules_accept_the_right_example_and_refuse_the_wrong_one(name: str) -> None:
    questions = read_skill_set(name)
    assert [question.id for question in questions if not question.accepts(question.right)] == []
    assert [question.id for question in questions if question.accepts(question.wrong)] == []
    assert [question.id for question in questions if question.accepts("")] == []


@pytest.mark.parametrize("name", NAMES)
def test_questions_are_enough_unique_and_ordered_by_kind(name: str) -> None:
    questions = read_skill_set(name)
    assert len(questions) >= MIN_QUESTIONS[name]
    texts = Counter(normalised(question.as_prompt().text) for question in questions)
    assert [text for text, count in texts.items() if count > 1] == []
    kinds = [kind for kind, _ in groupby(question.kind for question in questions)]
    assert len(kinds) == len(set(kinds))
    assert {question.kind for question in spread(questions, 40)} == set(kinds)


def test_ids_are_unique_over_all_shipped_prompts() -> None:
    ids = [question.id for name in NAMES for question in read_skill_set(name)]
    ids += [
        prompt.id
        for name in (EVAL_PROMPTS, REPLAY_PROMPTS, SAFETY_PROMPTS)
        for prompt in shipped_prompts(name)
    ]
    assert [id_ for id_, count in Counter(ids).items() if count > 1] == []


def test_conversations_alternate_and_end_with_the_model() -> None:
    for name in NAMES:
        for question in read_skill_set(name):
            roles = [role for role, _ in question.as_prompt().messages if role != "system"]
            assert roles == (["user", "assistant"] * len(roles))[: len(roles)], question.id
            assert roles[-1] == "user", question.id


def test_no_question_is_in_the_replay_data() -> None:
    replayed = [prompt.prompt for prompt in shipped_prompts(REPLAY_PROMPTS)]
    questions = [question for name in NAMES for question in read_skill_set(name)]
    for texts in ([asked(question) for question in questions], [question.prompt for question in questions]):
        known = near_duplicates(texts, replayed)
        assert [question.id for question, is_known in zip(questions, known, strict=True) if is_known] == []


# --- what a set can show ----------------------------------------------------------------------------------------


def skill_set(right: int, n: int = 40) -> SkillSet:
    """Return a set of which the base answers the first `right` questions."""
    questions = read_skill_set("languages")[:n]
    answers = [question.right if i < right else "No idea." for i, question in enumerate(questions)]
    return SkillSet(
        "languages",
        questions,
        [
            BaseAnswer(question.id, question.prompt, answer, 32, ended=True)
            for question, answer in zip(questions, answers, strict=True)
        ],
    )


def test_base_that_can_do_too_little_shows_no_loss() -> None:
    assert not skill_set(0).can_show_a_loss
    assert not skill_set(5).can_show_a_loss, "even losing all five has p = 0.03"
    assert skill_set(7).can_show_a_loss
    assert skill_set(7).compared == skill_set(7).questions
    assert skill_set(5).compared == ()


def test_answers_that_fit_any_question_are_chance() -> None:
    """A model that always says the same is right sometimes, but not more often than by chance."""
    questions = [
        SkillQuestion.model_validate(
            {
                "id": f"short-{i}",
                "kind": "words",
                "prompt": f"Say something short ({i}).",
                "rules": [{"rule": "words", "at_least": 1, "at_most": 10}],
                "right": "Hello.",
                "wrong": "",
            }
        )
        for i in range(40)
    ]
    answers = [
        BaseAnswer(question.id, question.prompt, "Something short.", 32, ended=True) for question in questions
    ]
    asked_set = SkillSet("instructions", questions, answers)
    assert all(asked_set.base_right)
    assert asked_set.chance == [1.0] * 40
    assert not asked_set.can_show_a_loss
