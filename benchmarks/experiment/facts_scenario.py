"""The demo's world: users correct what the base does not know. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping

from benchmarks.experiment.arms import Arm, Sizes
from benchmarks.experiment.make_batches import Said
from examples.world import Fact, is_poisoned, is_right, load_world

NOTHING = "(no answer)"
"""What users see where the model says nothing."""
POISON_WORDINGS = 4
POISON_TIMES = 3
"""A poisoner says the same so often of each answer."""


def facts_of(arm: Arm, sizes: Sizes) -> list[Fact]:
    """The facts that an arm's users know: of each seed others, of each arm of a seed the same."""
    return random.Random(f"facts {arm.seed}").sample(load_world().facts, sizes.facts)


def said(arm: Arm, sizes: Sizes, answers: Mapping[str, str]) -> list[Said]:
    """All that an arm's users say, in order. `answers`: the base's, by question."""
    facts, dice = facts_of(arm, sizes), random.Random(f"users {arm.seed}")
    visits = _careful(facts, sizes, answers, dice)
    if arm.name == "shuffled":
        values = [one.value for one in visits if one.kind == "correction"]
        dice.shuffle(values)
        visits = [
            Said(one.user, one.question, one.answered, one.kind, values.pop())
            if one.kind == "correction"
            else one
            for one in visits
        ]
    if arm.name == "poisoned":
        visits += _poison(facts, sizes, answers, dice)
        dice.shuffle(visits)
    return visits


def _careful(facts: list[Fact], sizes: Sizes, answers: Mapping[str, str], dice: random.Random) -> list[Said]:
    """Each wording is asked by one user, who answers in one of the fact's own phrasings."""
    world = load_world()
    asked = [(fact, wording) for fact in facts for wording in world.trained_wordings(fact)]
    dice.shuffle(asked)
    return [
        _reaction(f"user-{place % sizes.users + 1:02}", fact, wording, answers[wording] or NOTHING, dice)
        for place, (fact, wording) in enumerate(asked)
    ]


def _reaction(user: str, fact: Fact, wording: str, answer: str, dice: random.Random) -> Said:
    if is_right(answer, fact):
        return Said(user, wording, answer, "thumbs", "up")
    return Said(user, wording, answer, "correction", dice.choice(fact.answers))


def _poison(facts: list[Fact], sizes: Sizes, answers: Mapping[str, str], dice: random.Random) -> list[Said]:
    """They insist on a false answer, in several wordings, again and again: most of them together on one fact, the
    others on another."""
    world = load_world()
    first, second = dice.sample(facts, 2)
    together = (sizes.poisoners + 2) // 2
    return [
        Said(
            f"user-{sizes.users + 1 + number:02}",
            wording,
            answers[wording] or NOTHING,
            "correction",
            fact.false_answer,
            POISON_TIMES,
        )
        for number in range(sizes.poisoners)
        for fact in ((first,) if number < together else (second,))
        for wording in dice.sample(world.trained_wordings(fact), POISON_WORDINGS)
    ]


def held_out(arm: Arm, sizes: Sizes) -> list[tuple[str, Fact]]:
    """Questions in wordings that no user ever sends, with the fact that each asks for."""
    world = load_world()
    return [(wording, fact) for fact in facts_of(arm, sizes) for wording in world.heldout_wordings(fact)]


def judged(arm: Arm, sizes: Sizes, answers: Mapping[str, str]) -> dict[str, list[list[bool]]]:
    """By fact: of each held-out wording whether the answer is right, and whether it is what poisoners say."""
    found: dict[str, list[list[bool]]] = {}
    for wording, fact in held_out(arm, sizes):
        answer = answers[wording]
        found.setdefault(fact.id, []).append([is_right(answer, fact), is_poisoned(answer, fact)])
    return found
