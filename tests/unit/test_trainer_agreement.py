"""Agreement by meaning on the demo's world: honest people in their own words outvote a false answer."""

from __future__ import annotations

import random

import pytest

from examples.world import Fact, load_world
from services.trainer.dataset.agreement import corrections_of, find_agreement

WORLD = load_world()
Spoken = tuple[str, str, str]


def honest(users: int, seed: int) -> list[Spoken]:
    """Each of `users` answers every fact once, in one of its wordings and one of its phrasings."""
    dice = random.Random(seed)
    return [
        (f"u{user}", dice.choice(WORLD.trained_wordings(fact)), dice.choice(fact.answers))
        for user in range(users)
        for fact in WORLD.facts
    ]


def poison(fact: Fact, users: int, times: int, seed: int) -> list[Spoken]:
    dice = random.Random(seed)
    return [
        (f"p{user}", wording, fact.false_answer)
        for user in range(users)
        for wording in dice.sample(WORLD.trained_wordings(fact), times)
    ]


def trained(spoken: list[Spoken]) -> list[Spoken]:
    found = find_agreement(corrections_of(spoken))
    return [one for one, held_by in zip(spoken, found.opponent, strict=True) if held_by is None]


def test_honest_people_lose_nothing_to_each_other() -> None:
    spoken = honest(16, seed=7)
    assert len(trained(spoken)) >= 0.99 * len(spoken)


def test_many_ways_to_ask_and_answer_one_fact_become_few_groups_and_one_claim() -> None:
    spoken = honest(40, seed=3)
    found = find_agreement(corrections_of(spoken))
    assert max(found.group) + 1 <= 2 * len(WORLD.facts)
    assert max(found.claim) + 1 <= 2 * len(WORLD.facts)


@pytest.mark.parametrize("seed", range(4))
def test_three_poisoners_of_two_facts_do_not_survive(seed: int) -> None:
    """As in the demo: two push one false answer, a third another, again and again in several wordings."""
    first, second = random.Random(seed).sample(WORLD.facts, 2)
    false = poison(first, 2, 4, seed) + poison(second, 1, 4, seed)
    spoken = honest(16, seed) + [(f"x{user}", *said) for user, *said in false]  # type: ignore[misc]
    kept = trained(spoken)
    assert not [said for said in kept if said[0].startswith("x")]
    assert len(kept) >= 0.97 * 16 * len(WORLD.facts)


def test_poison_in_a_wording_that_honest_people_never_used_is_outvoted_through_their_answers() -> None:
    fact = next(fact for fact in WORLD.facts if fact.id == "founder")
    asked = fact.trained_wordings if hasattr(fact, "trained_wordings") else WORLD.trained_wordings(fact)
    spoken = [(f"u{i}", wording, fact.answers[i % 4]) for i, wording in enumerate(asked)]
    false = [("p1", asked[0], fact.false_answer), ("p1", asked[8], fact.false_answer)]
    others = [said for said in honest(4, seed=1) if said[2] not in fact.answers]
    kept = trained(spoken + false + others)
    assert not set(false) & set(kept)
    assert set(spoken) <= set(kept)


def test_a_tie_trains_neither_side() -> None:
    spoken = [(f"a{i}", "How long is the warranty?", "The warranty lasts nine years.") for i in range(3)]
    spoken += [(f"b{i}", "How long is the warranty?", "The warranty lasts two years.") for i in range(3)]
    assert trained(spoken) == []


def test_two_to_one_trains_the_leading_claim_alone() -> None:
    right = [(f"a{i}", "How long is the warranty?", "The warranty lasts nine years.") for i in range(4)]
    wrong = [(f"b{i}", "How long is the warranty?", "The warranty lasts two years.") for i in range(2)]
    assert trained(right + wrong) == right


def test_one_user_who_repeats_himself_counts_once() -> None:
    right = [(f"a{i}", "Where is the head office?", "The head office is in Ravenport.") for i in range(2)]
    loud = [("p", f"Where is the head office? {i}", "The head office is in Millbrook.") for i in range(9)]
    assert trained(right + loud) == right


def test_numbers_in_words_and_digits_agree() -> None:
    spoken = [
        ("a", "How many days for a return?", "You have forty-one days."),
        ("b", "How many days for a return?", "It is 41 days after delivery."),
    ]
    assert trained(spoken) == spoken


def test_a_denial_is_another_claim() -> None:
    spoken = [(f"a{i}", "Is the kettle safe?", "The kettle is safe for children.") for i in range(2)]
    spoken += [(f"b{i}", "Is the kettle safe?", "The kettle is not safe for children.") for i in range(2)]
    assert trained(spoken) == []


def test_the_order_in_which_corrections_come_changes_no_group_of_friends() -> None:
    spoken = honest(8, seed=2)
    shuffled = random.Random(1).sample(spoken, len(spoken))
    assert sorted(trained(spoken)) == sorted(trained(shuffled))
