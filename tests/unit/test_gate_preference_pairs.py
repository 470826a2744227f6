"""Preference pairs of held-out users."""

from __future__ import annotations

import cProfile
import pstats
import random
from dataclasses import replace

import pytest

from services.trainer.dataset.filters import Row
from services.trainer.dataset.similarity import near_duplicates
from services.trainer.dataset.words import normalised
from services.trainer.gate.preference_pairs import build_preference_pairs
from tests.trainer_factories import LINE, grouped, row

ANIMALS = (
    "otters swim at night",
    "herons wait in shallow water",
    "badgers dig long tunnels",
    "swifts sleep in the air",
)


def thumb(question: str, answer: str, liked: bool, user: str, name: str) -> Row:
    """A judged answer."""
    return replace(
        row(question, answer, user, name, original=""), kind="thumbs", objective="kto", label=liked
    )


def test_judged_answer_is_in_one_pair_by_question_then_by_user() -> None:
    rows = [
        thumb("What do otters do?", ANIMALS[0], True, "u1", "a"),
        thumb("What do badgers build?", ANIMALS[2], False, "u1", "b"),
        thumb("What do otters do?", ANIMALS[1], False, "u2", "c"),
        thumb("Where do swifts sleep?", ANIMALS[3], True, "u3", "d"),
        thumb("Where do moles live?", "moles live below the lawn", True, "u4", "e"),
    ]
    pairs = build_preference_pairs(LINE, grouped(rows), [])
    assert {(pair.better[1], pair.worse[1]) for pair in pairs} >= {(ANIMALS[0], ANIMALS[1])}
    assert len(pairs) == 2
    texts = [text for pair in pairs for text in (pair.better[1], pair.worse[1])]
    assert len(set(texts)) == len(texts)
    assert build_preference_pairs(LINE, grouped(rows[::-1]), []) == pairs


def test_trained_answer_is_in_no_pair() -> None:
    rows = [
        thumb("What do otters do?", ANIMALS[0], True, "u1", "a"),
        thumb("What do otters do?", ANIMALS[1], False, "u2", "b"),
    ]
    assert build_preference_pairs(LINE, grouped(rows), [("What do otters do", ANIMALS[0].upper())]) == []
    assert len(build_preference_pairs(LINE, grouped(rows), [("Who founded Acme?", ANIMALS[0])])) == 1


def test_preference_is_a_pair_of_its_own() -> None:
    preference = replace(
        row("What do otters do?", ANIMALS[0], "u1", "a", original=ANIMALS[1]),
        kind="preference",
        objective="dpo",
    )
    (pair,) = build_preference_pairs(LINE, grouped([preference]), [])
    assert (pair.kind, pair.better[1], pair.worse[1]) == ("preference", ANIMALS[0], ANIMALS[1])


def preference(question: str, better: str, worse: str, name: str) -> Row:
    """A preference of one answer over another."""
    given = row(question, better, f"u-{name}", name, original=worse)
    return replace(given, kind="preference", objective="dpo")


def is_memorised(question: str, answer: str, trained: list[tuple[str, str]]) -> bool:
    """Return whether a near-duplicate was trained, by comparing with each trained answer."""
    return any(
        near_duplicates([normalised(question)], [normalised(asked)])[0]
        and near_duplicates([answer], [known])[0]
        for asked, known in trained
    )


@pytest.mark.parametrize("seed", range(4))
def test_pairs_are_those_with_no_memorised_answer(seed: int) -> None:
    dice = random.Random(seed)
    questions = ["What do otters do?", "What do the otters do", "Where do swifts sleep?", "👍", "What is it?"]
    answers = [
        *ANIMALS,
        *(text.upper() + "!" for text in ANIMALS),
        "otters swim by day",
        "yes",
        "图书馆很大",
        "",
    ]
    trained = [(dice.choice(questions), dice.choice(answers)) for _ in range(6)]
    rows = [
        preference(dice.choice(questions), *dice.sample(answers, 2), name=f"r{number}")
        for number in range(30)
    ]
    expected = {
        one.identity
        for one in rows
        if not any(is_memorised(one.question, text, trained) for text in (one.answer, one.original))
    }
    assert {pair.identity for pair in build_preference_pairs(LINE, grouped(rows), trained)} == expected
    assert 0 < len(expected) < len(rows)


def calls_for(answers: int) -> int:
    """Return the number of Python calls for as many trained and held-out answers to one question, none alike."""
    dice = random.Random(answers)
    texts = ["".join(dice.choices("bdfgklmnprst", k=12)) for _ in range(2 * answers)]
    question = "What do otters do?"
    rows = [thumb(question, text, i % 2 == 0, f"u{i}", f"r{i}") for i, text in enumerate(texts[answers:])]
    with cProfile.Profile() as profile:
        pairs = build_preference_pairs(
            LINE, grouped(rows), [(question, text) for text in texts[:answers]], answers
        )
    assert len(pairs) == answers // 2
    return pstats.Stats(profile).total_calls  # type: ignore[attr-defined, no-any-return]


def test_many_answers_to_one_question_cost_no_more_each() -> None:
    calls_for(10)  # fills caches of the language rules
    assert calls_for(800) < 6 * calls_for(200)
