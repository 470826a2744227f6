"""A version that is gated again is evaluated on what held-out users have said until then, and trained on no more."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from examples.world import load_world
from services.trainer.core.recipe import Recipe
from services.trainer.database import open_database
from services.trainer.dataset import batch_table, snapshot, snapshot_files
from services.trainer.dataset.holdout import is_held_out
from services.trainer.dataset.snapshot_files import HELDOUT_ROWS
from services.trainer.files import write_whole
from services.trainer.gate.held_out_items import held_out_items
from services.trainer.gate.stage import write_report
from services.trainer.run.context import RunContext
from services.trainer.run.folder import GATE_REPORT, GATE_REPORT_PAGE, GATE_RESULT
from services.trainer.worker import gate_again, row_checks
from shared.chat_format import ChatFormat
from shared.events import ExampleRevision
from shared.versions import GateReport
from tests.chat_bases import family_tokenizer
from tests.trainer_factories import LINE, batch, revision

WORLD = load_world()
TRAINING = [name for name in (f"user-{i}" for i in range(60)) if not is_held_out(LINE, name)][:20]
HELDOUT = [name for name in (f"user-{i}" for i in range(200)) if is_held_out(LINE, name)]


def correction(user: str, number: int, *, trained: bool) -> ExampleRevision:
    fact = WORLD.facts[number % len(WORLD.facts)]
    wordings = WORLD.trained_wordings(fact) if trained else WORLD.heldout_wordings(fact)
    return revision(f"{user}-{number}", wordings[0], fact.answers[0], user)


@pytest.fixture
def context(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunContext:
    """Return a version's folder with the snapshot of batch 1; three more batches have been collected since."""
    later = [correction(user, number, trained=False) for number, user in enumerate(HELDOUT[6:14])]
    collected = [
        batch(
            [correction(user, number, trained=True) for number, user in enumerate(TRAINING)]
            + [correction(user, number, trained=False) for number, user in enumerate(HELDOUT[:6])]
        ),
        batch(later[:4], 2),
        batch([*later[4:], correction(HELDOUT[20], 3, trained=True)], 3),
        batch([correction(TRAINING[0], 30, trained=True)], 4),
    ]
    with closing(open_database(tmp_path)) as db, db:
        for one in collected:
            batch_table.store_batch(db, one)
        taken = snapshot.build(LINE, batch_table.current_examples(db, {"0": 1}), {"0": 1})
    folder = tmp_path / "gates" / "run"
    folder.mkdir(parents=True)
    snapshot_files.write(folder, taken, 10)
    monkeypatch.setattr(row_checks, "base_shape", lambda _: SimpleNamespace(context=2048))
    config = SimpleNamespace(
        line=LINE, through={"0": 4}, released=0, recipe=Recipe(), base="base", stable_run=None
    )
    fields: dict[str, Any] = {
        "folder": folder,
        "config": config,
        "trainer_folder": tmp_path,
        "chat": ChatFormat(family_tokenizer(tiny_model, "smollm2")),
        "folder_of": lambda run: folder.parent / run,
    }
    return cast("RunContext", SimpleNamespace(**fields))


def users(context: RunContext) -> set[str]:
    return {one.row.user_id for one in snapshot_files.read_rows(context.folder, HELDOUT_ROWS)}


def test_held_out_feedback_since_the_snapshot_is_read(context: RunContext) -> None:
    trained, digest = snapshot_files.read_rows(context.folder), snapshot_files.read_ref(context.folder).digest
    assert users(context) == set(HELDOUT[:6])
    before = gate_again.read_held_out(context)
    assert users(context) == {*HELDOUT[:14], HELDOUT[20]}
    assert snapshot_files.read_rows(context.folder) == trained
    assert snapshot_files.read_ref(context.folder).digest == digest
    assert len(before) == 6


def test_process_that_starts_again_still_knows_what_is_new(context: RunContext) -> None:
    first = gate_again.read_held_out(context)
    rows = (context.folder / HELDOUT_ROWS).read_bytes()
    assert gate_again.read_held_out(context) == first
    assert (context.folder / HELDOUT_ROWS).read_bytes() == rows


def test_batches_after_the_configuration_are_not_read(context: RunContext) -> None:
    context.config.through = {"0": 2}  # type: ignore[misc]
    gate_again.read_held_out(context)
    assert users(context) == set(HELDOUT[:10])


def test_erased_feedback_is_not_evaluated(context: RunContext) -> None:
    gone = HELDOUT[0]
    with closing(open_database(context.trainer_folder)) as db, db:
        kept = [
            one.revision
            for one in batch_table.current_examples(db, {"0": 1})
            if one.revision.signals[0].user_id != gone
        ]
        batch_table.store_batch(db, batch(kept, 1, rewrite=1))
    gate_again.read_held_out(context)
    assert users(context) == {*HELDOUT[1:14], HELDOUT[20]}


def test_wording_that_was_trained_is_no_item(context: RunContext) -> None:
    """User 20 asked in the very words of a row that trained."""
    gate_again.read_held_out(context)
    counted = users_of_items(context)
    assert counted & set(HELDOUT[6:14])
    assert HELDOUT[20] in users(context) - counted


def users_of_items(context: RunContext) -> set[str]:
    user_of = {
        one.row.identity: one.row.user_id for one in snapshot_files.read_rows(context.folder, HELDOUT_ROWS)
    }
    return {user_of[identity] for item in held_out_items(context).voting_rows() for identity in item}


def test_report_counts_the_items_with_new_feedback(context: RunContext) -> None:
    before = gate_again.read_held_out(context)
    items = held_out_items(context).voting_rows()
    report = GateReport(verdict="passed", reasons=("better",), gated_against=f"{LINE}@base-00000000")
    found = gate_again.with_new_items(report, items, before)
    new = users_of_items(context) & set(HELDOUT[6:14])
    assert 0 < len(new) < len(items)
    assert found.new_items == len(new)
    sentence = f"{len(new)} of the {len(items)} items are from feedback since the version's last gate"
    assert found.reasons == ("better", sentence)


def test_pair_is_new_if_one_of_its_answers_is(context: RunContext) -> None:
    report = GateReport(verdict="passed", gated_against=f"{LINE}@base-00000000")
    items = [("a", "b"), ("a", "c"), ("c", "d"), ("a",), ("d",)]
    assert gate_again.with_new_items(report, items, frozenset("ab")).new_items == 3


def test_number_of_new_items_is_in_every_form_of_the_report(context: RunContext) -> None:
    report = GateReport(verdict="passed", gated_against=f"{LINE}@base-00000000")
    document = {"line": LINE, "run_id": "run", "report": report.model_dump(mode="json"), "items": []}
    write_whole(context.folder / GATE_RESULT, b"")
    write_report(context.folder, document)
    gate_again._write_reasons(context.folder, gate_again.with_new_items(report, [("a",)], frozenset()))
    sentence = "1 of the 1 items are from feedback since"
    stored = json.loads((context.folder / GATE_REPORT).read_bytes())
    assert stored["report"]["new_items"] == 1
    assert sentence in (context.folder / GATE_REPORT_PAGE).read_text()
