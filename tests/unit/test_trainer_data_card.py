"""Data card: its statistics are those of the snapshot, and it contains no user text."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from examples.world import load_world
from services.trainer.core.recipe import Recipe
from services.trainer.dataset import data_card, snapshot, snapshot_files
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.data_card import (
    DATA_CARD,
    DATA_CARD_PAGE,
    DataCard,
    ExamplesRead,
    Quantiles,
    build_card,
    quantiles,
)
from services.trainer.dataset.erasure_target import ErasureTarget
from services.trainer.dataset.filters import QuarantinedRow
from services.trainer.dataset.snapshot_files import Snapshot
from services.trainer.dataset.token_budget import BEYOND_BUDGET
from services.trainer.erasure import redact_run
from services.trainer.run.run_table import RunConfig
from shared.versions import VersionRef
from tests.trainer_factories import LINE, NOW, example, grouped, revision, row, with_finish_reason

WORLD = load_world()
USERS, EACH = 30, 5


def config() -> RunConfig:
    return RunConfig(
        run_id="run-1",
        line=LINE,
        through={"0": 1},
        recipe=Recipe(replay_share=0.05),
        base="",
        base_name="tiny",
        base_digest="ab" * 32,
        stable=VersionRef(version=f"{LINE}@base-abababab", kind="base", digest="ab" * 32),
        stable_run=None,
        created_ms=0,
    )


def examples() -> list[Example]:
    dice = random.Random(3)
    corrections = [
        example(
            revision(f"r{user}-{fact.id}", dice.choice(WORLD.trained_wordings(fact)), fact.answer, f"u{user}")
        )
        for user in range(USERS)
        for fact in dice.sample(WORLD.facts, EACH)
    ]
    again = example(
        revision("again", corrections[0].revision.messages[0].content, WORLD.facts[0].answer, "u0")
    )
    secret = example(revision("secret", "Who am I?", "You are anna.meier@pellworth.com.", "u1"))
    thumbs = [
        example(
            with_finish_reason(
                revision(f"t{i}", "Who?", "up", f"u{i}", kind="thumbs"), "length" if i else "stop"
            )
        )
        for i in range(7)
    ]
    return [*corrections, again, secret, *thumbs]


@pytest.fixture(name="taken")
def _taken() -> Snapshot:
    return snapshot.build(LINE, examples(), {"0": 1})


@pytest.fixture(name="card")
def _card(taken: Snapshot) -> DataCard:
    read = ExamplesRead()
    assert list(read.counted(examples())) == examples()
    return build_card(
        LINE,
        config().run_id,
        config().created_at,
        config().recipe,
        taken,
        read,
        [(10, i + 1) for i in range(len(taken.train))],
    )


def test_counts_are_those_of_the_snapshot(taken: Snapshot, card: DataCard) -> None:
    assert card.digest == taken.digest()
    assert card.examples == len(examples())
    assert card.signals == {"correction": USERS * EACH + 2, "thumbs": 7}
    assert card.training.rows == len(taken.train)
    assert card.training.users == len({one.row.user_id for one in taken.train})
    assert card.training.kinds == Counter(one.row.kind for one in taken.train)
    assert card.training.objectives == {"sft": len(taken.train)}
    assert card.measuring.objectives["kto liked"] == 7 - card.training.kinds["thumbs"]
    assert card.measuring.rows == len(taken.heldout) > 0
    assert card.training.unended + card.measuring.unended == 6
    loudest = Counter(one.row.user_id for one in taken.train).most_common(1)[0][1]
    assert card.training.largest_user_share == pytest.approx(loudest / len(taken.train), abs=1e-4)
    assert sum(card.held.values()) == len(taken.quarantined)
    assert card.held["personal data: an e-mail address"] == 1
    assert sum(card.signals.values()) == card.training.rows + card.measuring.rows + sum(card.held.values())


def test_duplicates_by_one_user_and_by_several_are_counted_apart() -> None:
    rows = [row("Who founded it?", "Ida Voss.", user, user) for user in ("u1", "u2", "u3")]
    rows.append(row("Who else?", "Nobody.", "u1", "r9"))
    duplicates = (snapshot.QuarantinedRow("r4", "e4", "duplicate: this user gave the same again"),)
    found = build_card(
        LINE,
        config().run_id,
        config().created_at,
        config().recipe,
        Snapshot(tuple(grouped(rows)), (), duplicates),
        ExamplesRead(),
        [(1, 1)] * 4,
    ).duplicates
    assert (found.same_user, found.between_users) == (1, 2)


def test_quantiles_are_lengths_that_occur() -> None:
    assert quantiles([]) == Quantiles()
    assert quantiles([7]) == Quantiles(p10=7, p50=7, p90=7, p99=7, longest=7)
    assert quantiles(range(1, 101)) == Quantiles(p10=10, p50=50, p90=90, p99=99, longest=100)


def test_card_contains_no_text_and_no_user(tmp_path: Path, taken: Snapshot, card: DataCard) -> None:
    data_card.write(tmp_path, card)
    text = (tmp_path / DATA_CARD).read_text() + (tmp_path / DATA_CARD_PAGE).read_text()
    for one in [*taken.train, *taken.heldout]:
        for private in (one.row.question, one.row.answer, f'"{one.row.user_id}"', one.row.response_id):
            assert private not in text
    assert "anna" not in text


def test_both_files_agree_and_get_the_replay_share_later(tmp_path: Path, card: DataCard) -> None:
    data_card.write(tmp_path, card)
    assert data_card.read(tmp_path) == card
    assert card.replay.share is None
    assert "at least 5.0% of the trained tokens" in (tmp_path / DATA_CARD_PAGE).read_text()
    data_card.record_replay(tmp_path, rows=12, tokens=300, others=1200, prompts=6)
    after = data_card.read(tmp_path)
    assert after is not None
    assert (after.replay.rows, after.replay.share) == (12, 0.2)
    assert after.model_copy(update={"replay": card.replay}) == card
    page = (tmp_path / DATA_CARD_PAGE).read_text()
    assert "20.0% of the trained tokens, 12 rows of 6 prompts" in page
    assert f"(signals: correction {USERS * EACH + 2}, thumbs 7)" in page
    assert f"| rows | {card.training.rows} | {card.measuring.rows} |" in page
    assert all(f"| {reason} | {count} |" in page for reason, count in card.held.items())


def test_replay_share_without_a_card_is_ignored(tmp_path: Path) -> None:
    data_card.record_replay(tmp_path, rows=12, tokens=300, others=1200, prompts=6)
    assert data_card.read(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_card_stays_when_its_rows_are_erased(tmp_path: Path, taken: Snapshot, card: DataCard) -> None:
    data_card.write(tmp_path, card)
    snapshot_files.write(tmp_path, taken, 1)
    target = ErasureTarget("q1", "erasure", taken.train[0].row.user_id)
    redact_run.redact(tmp_path, [target], lambda row: False)
    assert len(snapshot_files.read_rows(tmp_path)) < len(taken.train)
    assert data_card.read(tmp_path) == card


def test_too_little_replay_is_a_warning_that_says_what_to_do(tmp_path: Path, card: DataCard) -> None:
    data_card.write(tmp_path, card)
    assert data_card.record_replay(tmp_path, rows=12, tokens=60, others=1140, prompts=6) is None
    warning = data_card.record_replay(tmp_path, rows=12, tokens=59, others=1141, prompts=6)
    assert warning is not None
    assert "4.9% of the trained tokens instead of 5.0%" in warning
    assert "LOOPWRIGHT_TRAINER_REPLAY_PROMPT_FILE" in warning
    after = data_card.read(tmp_path)
    assert after is not None
    assert after.replay.warning == warning
    assert f"Warning: {warning}." in (tmp_path / DATA_CARD_PAGE).read_text()


def test_rows_beyond_the_budget_are_counted_apart_from_the_quarantine(
    card: DataCard, taken: Snapshot
) -> None:
    beyond = tuple(QuarantinedRow.of(one.row, BEYOND_BUDGET) for one in taken.train[:7])
    fewer = replace(taken, train=taken.train[7:], quarantined=(*taken.quarantined, *beyond))
    smaller = data_card.build_card(
        "assistant", "run", NOW, Recipe(), fewer, ExamplesRead(), [(1, 1)] * len(fewer.train)
    )
    assert smaller.beyond_budget == 7
    assert smaller.held == card.held
    assert "Left out by the token budget: 7 rows" in data_card.render_page(smaller)
