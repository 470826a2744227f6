"""Preference pairs of held-out users."""

from __future__ import annotations

from dataclasses import replace

from services.trainer.dataset.filters import Row
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
