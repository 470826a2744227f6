"""Who asks what: 60 simulated users of several temperaments, the same in every run."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from examples.world import Fact, World

Temperament = Literal["careful", "thumbs", "vague", "poisoner"]
CAST: dict[Temperament, int] = {"careful": 42, "thumbs": 8, "vague": 7, "poisoner": 3}
SEED = 20
THUMBS_VISITS = 3
VAGUE_VISITS = 2
POISON_VISITS = 4


@dataclass(frozen=True, slots=True)
class Visit:
    """One user asks one question once. `correction`: what this user will say the answer should have been."""

    user: str
    temperament: Temperament
    fact: Fact
    question: str
    correction: str


def cast(world: World, *, shuffled: bool = False) -> list[Visit]:
    """All visits in the order in which they happen.

    Each trained wording of each fact is asked once by a careful user, who answers in one of the fact's own phrasings,
    so that every fact is corrected by many users in many words. Three poisoners, two of them together, submit a false
    answer again and again. `shuffled`: the control in which every correction answers some other question.
    """
    dice = random.Random(SEED)
    people = _people()
    visits = _careful(world, people["careful"], dice)
    visits += _light(world, people["thumbs"], "thumbs", THUMBS_VISITS, dice)
    visits += _light(world, people["vague"], "vague", VAGUE_VISITS, dice)
    visits += _poison(world, people["poisoner"], dice)
    dice.shuffle(visits)
    return _shuffled(visits, dice) if shuffled else visits


def _people() -> dict[Temperament, list[str]]:
    numbers = iter(range(1, sum(CAST.values()) + 1))
    return {
        temperament: [f"user-{next(numbers):02}" for _ in range(count)] for temperament, count in CAST.items()
    }


def _careful(world: World, users: list[str], dice: random.Random) -> list[Visit]:
    asked = [(fact, wording) for fact in world.facts for wording in world.trained_wordings(fact)]
    dice.shuffle(asked)
    return [
        Visit(users[place % len(users)], "careful", fact, wording, dice.choice(fact.answers))
        for place, (fact, wording) in enumerate(asked)
    ]


def _light(
    world: World, users: list[str], temperament: Temperament, each: int, dice: random.Random
) -> list[Visit]:
    return [
        Visit(user, temperament, fact, dice.choice(world.trained_wordings(fact)), "")
        for user in users
        for fact in dice.sample(world.facts, each)
    ]


def _poison(world: World, users: list[str], dice: random.Random) -> list[Visit]:
    """The first two push the same false answer, the third another."""
    first, second = dice.sample(world.facts, 2)
    return [
        Visit(user, "poisoner", fact, wording, fact.false_answer)
        for user, fact in zip(users, (first, first, second), strict=True)
        for wording in dice.sample(world.trained_wordings(fact), POISON_VISITS)
    ]


def _shuffled(visits: list[Visit], dice: random.Random) -> list[Visit]:
    corrections = [visit.correction for visit in visits]
    dice.shuffle(corrections)
    return [
        Visit(visit.user, visit.temperament, visit.fact, visit.question, correction or visit.correction)
        for visit, correction in zip(visits, corrections, strict=True)
    ]
