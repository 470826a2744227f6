"""A snapshot's rows stay within the token budget: the newest ones, and some of each question."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.dataset import snapshot
from services.trainer.dataset.filters import GroupedRow, Row, check_of
from services.trainer.dataset.token_budget import CHECK, NEWEST_SHARE, within_budget
from tests.trainer_factories import LINE, example, revision, row


def rows(count: int, groups: int, seed: int = 1) -> list[GroupedRow]:
    """Rows of 10 tokens, one per ms; most are of group 0."""
    dice = random.Random(seed)
    found = []
    for i in range(count):
        group = dice.randrange(1, groups) if dice.random() < 0.1 else 0
        given_row = replace(row(f"Question {group}?", f"Answer {i}.", f"u{i}", f"r{i:04d}"), occurred_ms=i)
        found.append(GroupedRow(given_row, group))
    return found


def ten(_: Row) -> int:
    return 10


def test_newest_rows_and_every_question_stay() -> None:
    given_rows = rows(1000, groups=8)
    kept, beyond = within_budget(LINE, given_rows, 1000, ten)
    assert len(kept) == 100
    assert len(beyond) == 900
    newest = {one.row.identity for one in given_rows[-round(NEWEST_SHARE * 100) :]}
    assert newest <= {one.row.identity for one in kept}
    reservoir = Counter(one.group for one in kept if one.row.identity not in newest)
    assert set(reservoir) == set(range(8))
    assert max(reservoir.values()) - min(reservoir.values()) <= 1
    assert {check_of(one.reason) for one in beyond} == {CHECK}


@given(seed=st.integers(0, 99), budget=st.integers(1, 4000))
def test_rows_within_the_budget_do_not_depend_on_order(seed: int, budget: int) -> None:
    given_rows = rows(200, groups=5, seed=seed)
    sizes = {one.row.identity: 1 + i % 37 for i, one in enumerate(given_rows)}
    kept, beyond = within_budget(LINE, given_rows, budget, lambda one: sizes[one.identity])
    assert sum(sizes[one.row.identity] for one in kept) <= budget
    assert len(kept) + len(beyond) == len(given_rows)
    assert bool(beyond) == (sum(sizes.values()) > budget)
    shuffled = random.Random(seed).sample(given_rows, len(given_rows))
    again, _ = within_budget(LINE, shuffled, budget, lambda one: sizes[one.identity])
    assert {one.row.identity for one in again} == {one.row.identity for one in kept}


@pytest.mark.parametrize("budget", [0, 2000])
def test_budget_that_suffices_leaves_nothing_out(budget: int) -> None:
    given_rows = rows(200, groups=5)
    assert within_budget(LINE, given_rows, budget, ten) == (given_rows, [])


def test_snapshot_stays_within_the_budget_and_names_the_reason() -> None:
    examples = [
        example(revision(f"r{i}", f"What is number {i % 30}?", f"It is {i % 30}.", f"user-{i}"))
        for i in range(200)
    ]
    whole = snapshot.build(LINE, examples, {"0": 1}, size=lambda _: 10)
    taken = snapshot.build(LINE, examples, {"0": 1}, size=lambda _: 10, token_budget=300)
    assert len(whole.train) > len(taken.train) == 30
    reasons = Counter(check_of(one.reason) for one in taken.quarantined)
    assert reasons[CHECK] == len(whole.train) - 30
    shuffled = random.Random(3).sample(examples, len(examples))
    again = snapshot.build(LINE, shuffled, {"0": 1}, size=lambda _: 10, token_budget=300)
    assert again.digest() == taken.digest()
