"""I5: a run's dataset is a function of what was read, whatever the order; held-out users are in none."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from examples.world import load_world
from services.trainer.dataset import snapshot, snapshot_files
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.filters import GroupedRow, Row
from services.trainer.dataset.holdout import is_held_out
from services.trainer.dataset.similarity import near_duplicates
from services.trainer.dataset.snapshot import MAX_RESERVED_SHARE, TARGET_ITEMS
from services.trainer.dataset.snapshot_files import ROW_GROUP, Snapshot
from services.trainer.gate.eval_items import build_eval_items
from shared.events import SignalKind
from tests.trainer_factories import LINE, example, revision, row

WORLD = load_world()


def cast(users: int = 40, each: int = 6, seed: int = 1) -> list[Example]:
    dice = random.Random(seed)
    return [
        example(
            revision(
                f"r{user}-{fact.id}",
                dice.choice(WORLD.trained_wordings(fact)),
                dice.choice(fact.answers),
                f"user-{user}",
            )
        )
        for user in range(users)
        for fact in dice.sample(WORLD.facts, each)
    ]


def test_digest_does_not_depend_on_order() -> None:
    examples = cast()
    shuffled = random.Random(9).sample(examples, len(examples))
    one, other = snapshot.build(LINE, examples, {"0": 1}), snapshot.build(LINE, shuffled, {"0": 1})
    assert one == other
    assert one.digest() == other.digest()
    training = one.train[-1].row.response_id
    fewer = [example for example in examples if example.revision.response_id != training]
    assert snapshot.build(LINE, fewer, {"0": 1}).digest() != one.digest()


def test_held_out_users_only_evaluate() -> None:
    taken = snapshot.build(LINE, cast(), {"0": 1})
    assert taken.train
    assert taken.heldout
    assert not any(is_held_out(LINE, one.row.user_id) for one in taken.train)
    assert all(is_held_out(LINE, one.row.user_id) for one in taken.heldout)


@pytest.mark.parametrize("seed", range(4))
def test_held_out_rows_do_not_depend_on_what_trains(seed: int) -> None:
    """The gate reads them again for a version whose training rows stay."""
    dice = random.Random(seed)
    examples = [*cast(seed=seed), *kinds_of_held_out_users(dice)]
    unfit = {one.revision.response_id for one in dice.sample(examples, 20)}

    def check(row: Row) -> str | None:
        return "unfit" if row.response_id in unfit else None

    taken = snapshot.build(LINE, examples, {"0": 1}, unfit=check)
    read = snapshot.held_out_rows(LINE, dice.sample(examples, len(examples)), unfit=check)
    assert tuple(read) == taken.heldout
    training = [one for one in examples if not is_held_out(LINE, one.revision.signals[0].user_id)]
    some = dice.sample(training, len(training) // 2)
    only = [one for one in examples if one not in training]
    assert tuple(snapshot.held_out_rows(LINE, [*some, *only], unfit=check)) == taken.heldout
    assert not any(one.row.response_id in unfit for one in read)


def kinds_of_held_out_users(dice: random.Random) -> list[Example]:
    """Return judgements of held-out users, some of a kind that cannot evaluate versions."""
    users = [name for name in (f"judge-{i}" for i in range(60)) if is_held_out(LINE, name)]
    judgements: list[tuple[SignalKind, str | int]] = [
        ("thumbs", "up"),
        ("thumbs", "down"),
        ("comment", "too long, say less"),
    ]
    return [
        example(revision(f"j{user}-{i}", f"Who is {user}?", value, user, kind=kind, original=f"It is {i}."))  # type: ignore[arg-type]
        for user in users
        for i, (kind, value) in enumerate(dice.sample(judgements, 2))
    ]


def test_wordings_are_reserved_for_the_gate() -> None:
    taken = snapshot.build(LINE, cast(), {"0": 1})
    reserved = [one for one in taken.quarantined if one.reason.startswith("reserved")]
    assert 0 < len(reserved) < MAX_RESERVED_SHARE * (len(taken.train) + len(reserved))
    questions = [one.row.question for one in taken.train]
    counted = [
        item
        for item in build_eval_items(LINE, taken.heldout, questions, []).corrections
        if item.category == "wins"
    ]
    assert len(counted) >= 30
    assert not any(near_duplicates([item.row.question for item in counted], questions))


def test_wordings_of_liked_answers_are_reserved_in_proportion() -> None:
    dice = random.Random(5)
    mixed = [
        example(
            revision(
                one.revision.response_id,
                one.revision.messages[0].content,
                "up",
                one.revision.signals[0].user_id,
                kind="thumbs",
                original=str(one.revision.signals[0].value),
            )
        )
        if dice.random() < 0.4
        else one
        for one in cast(80)
    ]
    taken = snapshot.build(LINE, mixed, {"0": 1})
    questions = [one.row.question for one in taken.train]
    items = build_eval_items(LINE, taken.heldout, questions, [])
    corrections, liked = (
        sum(item.category == "wins" for item in kind) for kind in (items.corrections, items.liked)
    )
    natural = items.given["liked answers"] / items.given["corrections"]
    assert corrections >= 30
    assert 0.5 * natural < liked / corrections < 1.2 * natural
    held_out = [one.row.question for one in taken.heldout if one.row.label]
    assert snapshot.reserved_wordings(LINE, [], taken.train, [], held_out) == set(), "pairs need no wordings"


def test_wording_that_stable_trained_on_counts_no_win() -> None:
    taken = snapshot.build(LINE, cast(), {"0": 1})
    questions = [one.row.question for one in taken.train]
    counted = [
        item.row.question
        for item in build_eval_items(LINE, taken.heldout, questions, []).corrections
        if item.category == "wins"
    ]
    again = build_eval_items(LINE, taken.heldout, questions, counted).corrections
    assert not [item for item in again if item.category == "wins"]


def test_snapshot_is_read_back_and_complete_only_with_its_mark(tmp_path: Path) -> None:
    taken = snapshot.build(LINE, cast(), {"0": 1})
    assert not snapshot_files.is_complete(tmp_path)
    ref = snapshot_files.write(tmp_path, taken, 1234)
    assert snapshot_files.is_complete(tmp_path)
    assert snapshot_files.read_ref(tmp_path) == ref
    assert tuple(snapshot_files.read_rows(tmp_path)) == taken.train
    assert tuple(snapshot_files.read_rows(tmp_path, snapshot_files.HELDOUT_ROWS)) == taken.heldout
    assert ref.holds(f"{LINE}-0-1")
    assert not ref.holds(f"{LINE}-0-2")


def test_equal_snapshots_give_equal_files(tmp_path: Path) -> None:
    taken = snapshot.build(LINE, cast(), {"0": 1})
    assert snapshot_files.to_parquet(taken.train) == snapshot_files.to_parquet(taken.train)


def test_rows_that_a_run_cannot_train_are_quarantined() -> None:
    taken = snapshot.build(
        LINE, cast(), {"0": 1}, unfit=lambda row: None if len(row.answer) < 50 else "tokens: too many"
    )
    assert any(one.reason == "tokens: too many" for one in taken.quarantined)
    assert all(len(one.row.answer) < 50 for one in taken.train)


def test_rows_are_written_and_read_in_groups(tmp_path: Path) -> None:
    rows = snapshot.build(LINE, cast(), {"0": 1}).train
    many = tuple(
        GroupedRow(replace(rows[i % len(rows)].row, response_id=f"r{i}"), i) for i in range(2 * ROW_GROUP + 1)
    )
    taken = Snapshot(many, (), ())
    snapshot_files.write(tmp_path, taken, 1)
    groups = pq.ParquetFile(tmp_path / snapshot_files.TRAIN_ROWS).metadata.num_row_groups
    assert groups == 3
    assert tuple(snapshot_files.read_rows(tmp_path)) == many
    assert snapshot_files.read_rows(tmp_path, snapshot_files.HELDOUT_ROWS) == []


@pytest.mark.parametrize("seed", range(6))
def test_questions_compared_first_decide_as_all_of_them(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = cast(users=30 + 40 * (seed % 3), each=3 + seed, seed=seed)
    all_compared = snapshot.build(LINE, examples, {})
    monkeypatch.setattr(snapshot, "QUESTIONS_TRIED", TARGET_ITEMS + 5 * seed)
    assert snapshot.build(LINE, examples, {}) == all_compared


def test_enough_new_questions_reserve_nothing_without_another_search(monkeypatch: pytest.MonkeyPatch) -> None:
    held_out = [
        f"Where is the {name} of house {number}?" for number in range(60) for name in ("door", "lamp")
    ]
    compared: list[int] = []

    def counted(candidates: Sequence[str], known: Sequence[str]) -> list[bool]:
        compared.append(len(candidates))
        return near_duplicates(candidates, known)

    monkeypatch.setattr(snapshot, "near_duplicates", counted)
    monkeypatch.setattr(snapshot, "QUESTIONS_TRIED", 50)
    train = [GroupedRow(row("Who founded Acme?", "Ida Voss."), 0)]
    assert snapshot.reserved_wordings(LINE, held_out, train, []) == set()
    assert compared == [50]
