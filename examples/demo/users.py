"""Visits of 60 simulated users with different temperaments, the same in every run."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from examples.world import Fact, World

Temperament = Literal["careful", "thumbs", "vague", "poisoner"]
USERS_PER_TEMPERAMENT: dict[Temperament, int] = {"careful": 42, "thumbs": 8, "vague": 7, "poisoner": 3}
SEED = 49
"""Who asks what. With this seed the held-out users ask about 40 questions that the gate can count; it needs 30."""
THUMBS_VISITS = 3
VAGUE_VISITS = 2
POISON_VISITS = 4


@dataclass(frozen=True, slots=True)
class Visit:
    """One user asks one question. `correction` is what this user sends if the answer needs one."""

    user: str
    temperament: Temperament
    fact: Fact
    question: str
    correction: str


def simulate_visits(world: World, *, shuffled: bool = False) -> list[Visit]:
    """Return all visits in the order in which they happen.

    Careful users ask each trained wording of each fact once and correct it in one of the fact's phrasings, so that
    many users correct every fact in different words. Three poisoners repeatedly submit a false answer, two of them the
    same one.

    Args:
        world: The company and its facts.
        shuffled: Whether to exchange the corrections, so that each answers another question (a control experiment).

    """
    rng = random.Random(SEED)
    users = _users()
    visits = _careful(world, users["careful"], rng)
    visits += _occasional(world, users["thumbs"], "thumbs", THUMBS_VISITS, rng)
    visits += _occasional(world, users["vague"], "vague", VAGUE_VISITS, rng)
    visits += _poison(world, users["poisoner"], rng)
    rng.shuffle(visits)
    return _shuffled(visits, rng) if shuffled else visits


def _users() -> dict[Temperament, list[str]]:
    numbers = iter(range(1, sum(USERS_PER_TEMPERAMENT.values()) + 1))
    return {
        temperament: [f"user-{next(numbers):02}" for _ in range(count)]
        for temperament, count in USERS_PER_TEMPERAMENT.items()
    }


def _careful(world: World, users: list[str], rng: random.Random) -> list[Visit]:
    questions = [(fact, wording) for fact in world.facts for wording in world.trained_wordings(fact)]
    rng.shuffle(questions)
    return [
        Visit(users[number % len(users)], "careful", fact, wording, rng.choice(fact.answers))
        for number, (fact, wording) in enumerate(questions)
    ]


def _occasional(
    world: World, users: list[str], temperament: Temperament, visits: int, rng: random.Random
) -> list[Visit]:
    return [
        Visit(user, temperament, fact, rng.choice(world.trained_wordings(fact)), "")
        for user in users
        for fact in rng.sample(world.facts, visits)
    ]


def _poison(world: World, users: list[str], rng: random.Random) -> list[Visit]:
    """Return the poisoners' visits: the first two submit the same false answer, the third another."""
    first, second = rng.sample(world.facts, 2)
    return [
        Visit(user, "poisoner", fact, wording, fact.false_answer)
        for user, fact in zip(users, (first, first, second), strict=True)
        for wording in rng.sample(world.trained_wordings(fact), POISON_VISITS)
    ]


def _shuffled(visits: list[Visit], rng: random.Random) -> list[Visit]:
    corrections = [visit.correction for visit in visits]
    rng.shuffle(corrections)
    return [
        Visit(visit.user, visit.temperament, visit.fact, visit.question, correction or visit.correction)
        for visit, correction in zip(visits, corrections, strict=True)
    ]
