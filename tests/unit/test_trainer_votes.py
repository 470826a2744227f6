"""Votes for rival claims: users count once, recent ones outweigh old ones, and one user turns nothing around."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.trainer.dataset.agreement import corrections_of, find_agreement
from services.trainer.dataset.votes import LEAD, ChangeRule, leads

RULE = ChangeRule()
DAY = 86_400_000
NOW = 1_800_000_000_000
QUESTION = "What does delivery cost?"
OLD = ("Delivery costs 20 dollars.", "It is 20 dollars.", "You pay 20 dollars for it.")
NEW = ("Delivery costs 25 dollars.", "It is 25 dollars.", "You pay 25 dollars for it.")

Counts = st.integers(1, 12)
Ages = st.lists(st.integers(0, 4000), min_size=1, max_size=12)


def votes(name: str, ages: list[int]) -> dict[str, int]:
    """Return one vote per user, of these ages in days."""
    return {f"{name}{i}": NOW - age * DAY for i, age in enumerate(ages)}


def trained(said: list[tuple[str, str, int]]) -> dict[str, set[bool]]:
    """Return for each answer whether its corrections train. `said`: user, answer, age in days."""
    rows = [(user, QUESTION, answer) for user, answer, _ in said]
    found = find_agreement(corrections_of(rows, [NOW - age * DAY for _, _, age in said]))
    trains: dict[str, set[bool]] = {"20": set(), "25": set()}
    for (_, answer, _), verdict in zip(said, found.verdict, strict=True):
        trains["25" if "25" in answer else "20"].add(verdict is None)
    return trains


def old_users(count: int, age: int) -> list[tuple[str, str, int]]:
    return [(f"old-{i}", OLD[i % 3], age) for i in range(count)]


def new_users(count: int, age: int = 0) -> list[tuple[str, str, int]]:
    return [(f"new-{i}", NEW[i % 3], age) for i in range(count)]


@given(Counts, Counts)
def test_without_time_only_numbers_of_users_decide(one: int, other: int) -> None:
    assert leads(votes("a", [5] * one), votes("b", [5] * other), RULE) is (one >= LEAD * other)


@given(Ages, Ages)
def test_two_rivals_never_lead_each_other(one: list[int], other: list[int]) -> None:
    assert not (
        leads(votes("a", one), votes("b", other), RULE) and leads(votes("b", other), votes("a", one), RULE)
    )


@given(Ages, Ages, st.integers(0, 10**6))
def test_only_ages_relative_to_the_newest_vote_matter(one: list[int], other: list[int], by: int) -> None:
    later = [[age + by for age in ages] for ages in (one, other)]
    assert leads(votes("a", one), votes("b", other), RULE) is leads(
        votes("a", later[0]), votes("b", later[1]), RULE
    )


@given(Counts, st.integers(3, 12), st.integers(1, 4000))
def test_recent_users_win_once_the_old_votes_are_old_enough(old: int, new: int, age: int) -> None:
    outweighed = new >= LEAD * old * 0.5 ** (age / RULE.half_life_days)
    wins = outweighed or new >= LEAD * old
    assert leads(votes("new", [0] * new), votes("old", [age] * old), RULE) is wins


@given(Ages, st.integers(1, 2), st.integers(0, 4000))
def test_fewer_recent_users_than_the_rule_asks_for_count_as_before(
    old: list[int], recent: int, age: int
) -> None:
    one, other = votes("old", old), votes("new", [0] * recent)
    # What is said long before the newest vote adds users, but no recent ones.
    other |= votes("long-ago", [max(old) + RULE.half_life_days.__ceil__() + age] * 3)
    assert leads(other, one, RULE) is (len(other) >= LEAD * len(one) and not RULE.has_changed(other, one))


@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 4000))
def test_one_user_replaces_no_fact_however_often(old: int, times: int, age: int) -> None:
    alone = [("loud", NEW[i % 3], 0) for i in range(times)]
    found = trained(old_users(max(2, old), age) + alone)
    assert found == {"20": {True}, "25": {False}}


def test_three_recent_users_replace_a_fact_of_ten_users_a_year_ago() -> None:
    assert trained(old_users(10, 365) + new_users(2)) == {"20": {True}, "25": {False}}
    for count in (3, 5, 6, 10, 19, 20):
        assert trained(old_users(10, 365) + new_users(count)) == {"20": {False}, "25": {True}}


def test_fact_that_recent_users_confirm_is_not_replaced() -> None:
    confirmed = old_users(10, 365) + [(f"sure-{i}", OLD[0], 3) for i in range(2)]
    assert trained(confirmed + new_users(3))["25"] == {False}


def test_users_of_one_week_are_counted_without_regard_to_time() -> None:
    assert trained(old_users(10, 7) + new_users(3)) == {"20": {True}, "25": {False}}
    assert trained(old_users(10, 7) + new_users(6)) == {"20": {False}, "25": {False}}


def test_user_who_changes_their_mind_has_the_newer_vote() -> None:
    same = [("ann", OLD[0], 40), ("ann", NEW[1], 0), ("ben", OLD[2], 40), ("ben", NEW[0], 0)]
    assert trained(same) == {"20": {False}, "25": {True}}


def test_replaced_correction_is_quarantined_as_outdated() -> None:
    said = old_users(5, 365) + new_users(3)
    rows = [(user, QUESTION, answer) for user, answer, _ in said]
    found = find_agreement(corrections_of(rows, [NOW - age * DAY for _, _, age in said]))
    assert found.verdict == ["outdated"] * 5 + [None] * 3
