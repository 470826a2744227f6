"""The scenario `facts`: users correct what the base does not know about the demo's invented company. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping

from benchmarks.experiment.arms import Arm, Sizes
from benchmarks.make_batches import UserFeedback
from examples.world import Fact, is_poisoned, is_right, load_world

EMPTY_ANSWER = "(no answer)"
"""What users see if the model generates nothing."""
POISON_WORDINGS = 4
"""Wordings in which a poisoner asks for a fact."""
POISON_TIMES = 3
"""How often a poisoner sends each correction."""


def facts_of_arm(arm: Arm, sizes: Sizes) -> list[Fact]:
    """Return the facts that the users of an arm ask for. They depend only on the seed."""
    return random.Random(f"facts {arm.seed}").sample(load_world().facts, sizes.facts)


def simulate_feedback(arm: Arm, sizes: Sizes, answers: Mapping[str, str]) -> list[UserFeedback]:
    """Return the feedback of an arm's users, in order. `answers` are the base's answers by question."""
    facts, rng = facts_of_arm(arm, sizes), random.Random(f"users {arm.seed}")
    feedback = _honest_feedback(facts, sizes, answers, rng)
    if arm.name == "shuffled":
        values = [item.value for item in feedback if item.kind == "correction"]
        rng.shuffle(values)
        feedback = [
            UserFeedback(item.user, item.question, item.answer, item.kind, values.pop())
            if item.kind == "correction"
            else item
            for item in feedback
        ]
    if arm.name == "poisoned":
        feedback += _poison(facts, sizes, answers, rng)
        rng.shuffle(feedback)
    return feedback


def _honest_feedback(
    facts: list[Fact], sizes: Sizes, answers: Mapping[str, str], rng: random.Random
) -> list[UserFeedback]:
    """Return one user's feedback on each wording. Corrections use one of the fact's phrasings."""
    world = load_world()
    asked = [(fact, wording) for fact in facts for wording in world.trained_wordings(fact)]
    rng.shuffle(asked)
    return [
        _react(f"user-{i % sizes.users + 1:02}", fact, wording, answers[wording] or EMPTY_ANSWER, rng)
        for i, (fact, wording) in enumerate(asked)
    ]


def _react(user: str, fact: Fact, wording: str, answer: str, rng: random.Random) -> UserFeedback:
    if is_right(answer, fact):
        return UserFeedback(user, wording, answer, "thumbs", "up")
    return UserFeedback(user, wording, answer, "correction", rng.choice(fact.answers))


def _poison(
    facts: list[Fact], sizes: Sizes, answers: Mapping[str, str], rng: random.Random
) -> list[UserFeedback]:
    """Return repeated false corrections: most poisoners agree on one fact, the others attack a second one."""
    world = load_world()
    first, second = rng.sample(facts, 2)
    allied = (sizes.poisoners + 2) // 2
    return [
        UserFeedback(
            f"user-{sizes.users + 1 + number:02}",
            wording,
            answers[wording] or EMPTY_ANSWER,
            "correction",
            fact.false_answer,
            POISON_TIMES,
        )
        for number in range(sizes.poisoners)
        for fact in ((first,) if number < allied else (second,))
        for wording in rng.sample(world.trained_wordings(fact), POISON_WORDINGS)
    ]


def held_out_questions(arm: Arm, sizes: Sizes) -> list[tuple[str, Fact]]:
    """Return questions in wordings that no user sends, each with its fact."""
    world = load_world()
    return [(wording, fact) for fact in facts_of_arm(arm, sizes) for wording in world.heldout_wordings(fact)]


def judge_answers(arm: Arm, sizes: Sizes, answers: Mapping[str, str]) -> dict[str, list[list[bool]]]:
    """Return by fact, for each held-out wording: whether the answer is right, and whether it is the poisoners'."""
    judged: dict[str, list[list[bool]]] = {}
    for wording, fact in held_out_questions(arm, sizes):
        answer = answers[wording]
        judged.setdefault(fact.id, []).append([is_right(answer, fact), is_poisoned(answer, fact)])
    return judged
