"""Agreement by meaning on the demo world: honest users in their own words outvote a false answer."""

from __future__ import annotations

import random

import pytest

from examples.world import Fact, load_world
from services.trainer.dataset.agreement import corrections_of, find_agreement

WORLD = load_world()
Given = tuple[str, str, str]


def honest(users: int, seed: int) -> list[Given]:
    """Return corrections by honest users: each answers every fact once, in one of its wordings and phrasings."""
    dice = random.Random(seed)
    return [
        (f"u{user}", dice.choice(WORLD.trained_wordings(fact)), dice.choice(fact.answers))
        for user in range(users)
        for fact in WORLD.facts
    ]


def poison(fact: Fact, users: int, times: int, seed: int) -> list[Given]:
    dice = random.Random(seed)
    return [
        (f"p{user}", wording, fact.false_answer)
        for user in range(users)
        for wording in dice.sample(WORLD.trained_wordings(fact), times)
    ]


def training(given: list[Given]) -> list[Given]:
    found = find_agreement(corrections_of(given))
    return [one for one, held_by in zip(given, found.opponent, strict=True) if held_by is None]


def test_honest_corrections_do_not_exclude_each_other() -> None:
    given = honest(16, seed=7)
    assert len(training(given)) >= 0.99 * len(given)


def test_wordings_of_one_fact_form_few_groups_and_claims() -> None:
    given = honest(40, seed=3)
    found = find_agreement(corrections_of(given))
    assert max(found.group) + 1 <= 2 * len(WORLD.facts)
    assert max(found.claim) + 1 <= 2 * len(WORLD.facts)


@pytest.mark.parametrize("seed", range(4))
def test_three_poisoners_of_two_facts_are_outvoted(seed: int) -> None:
    """As in the demo: two users repeat one false answer and a third another one, in several wordings."""
    first, second = random.Random(seed).sample(WORLD.facts, 2)
    false = poison(first, 2, 4, seed) + poison(second, 1, 4, seed)
    given = honest(16, seed) + [(f"x{user}", *rest) for user, *rest in false]  # type: ignore[misc]
    kept = training(given)
    assert not [one for one in kept if one[0].startswith("x")]
    assert len(kept) >= 0.97 * 16 * len(WORLD.facts)


def test_poison_in_an_unused_wording_is_outvoted_by_answers() -> None:
    fact = next(fact for fact in WORLD.facts if fact.id == "founder")
    asked = fact.trained_wordings if hasattr(fact, "trained_wordings") else WORLD.trained_wordings(fact)
    given = [(f"u{i}", wording, fact.answers[i % 4]) for i, wording in enumerate(asked)]
    false = [("p1", asked[0], fact.false_answer), ("p1", asked[8], fact.false_answer)]
    others = [one for one in honest(4, seed=1) if one[2] not in fact.answers]
    kept = training(given + false + others)
    assert not set(false) & set(kept)
    assert set(given) <= set(kept)


def test_tie_trains_neither_side() -> None:
    given = [(f"a{i}", "How long is the warranty?", "The warranty lasts nine years.") for i in range(3)]
    given += [(f"b{i}", "How long is the warranty?", "The warranty lasts two years.") for i in range(3)]
    assert training(given) == []


def test_two_to_one_trains_only_the_leading_claim() -> None:
    right = [(f"a{i}", "How long is the warranty?", "The warranty lasts nine years.") for i in range(4)]
    wrong = [(f"b{i}", "How long is the warranty?", "The warranty lasts two years.") for i in range(2)]
    assert training(right + wrong) == right


def test_repetitions_by_one_user_count_once() -> None:
    right = [(f"a{i}", "Where is the head office?", "The head office is in Ravenport.") for i in range(2)]
    loud = [("p", f"Where is the head office? {i}", "The head office is in Millbrook.") for i in range(9)]
    assert training(right + loud) == right


def test_numbers_in_words_and_digits_agree() -> None:
    given = [
        ("a", "How many days for a return?", "You have forty-one days."),
        ("b", "How many days for a return?", "It is 41 days after delivery."),
    ]
    assert training(given) == given


def test_negation_is_another_claim() -> None:
    given = [(f"a{i}", "Is the kettle safe?", "The kettle is safe for children.") for i in range(2)]
    given += [(f"b{i}", "Is the kettle safe?", "The kettle is not safe for children.") for i in range(2)]
    assert training(given) == []


def test_order_of_corrections_does_not_matter() -> None:
    given = honest(8, seed=2)
    shuffled = random.Random(1).sample(given, len(given))
    assert sorted(training(given)) == sorted(training(shuffled))
