"""A version is gated again on what held-out users have said since, by the process that the trainer starts."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gate.null_adapters import null_adapter
from examples.world import load_world
from services.trainer.base.model import load_base
from services.trainer.database import open_database
from services.trainer.dataset import batch_table
from services.trainer.dataset.holdout import is_held_out
from services.trainer.run.folder import GATE_REPORT, GATE_REPORT_PAGE, GATE_RESULT, ORIGINAL
from services.trainer.worker.gate_again import gate_again
from shared.versions import GateReport
from tests.integration.test_trainer_gate import RECIPE, run_context
from tests.trainer_factories import LINE, batch, revision

HELDOUT = [name for name in (f"user-{i}" for i in range(200)) if is_held_out(LINE, name)][:12]


@pytest.mark.timeout(400)
def test_new_feedback_is_evaluated_and_counted(tiny_model: Path, tmp_path: Path) -> None:
    context = run_context(tiny_model, tmp_path)
    recipe = RECIPE.model_copy(update={"gate_control": "off"})
    context.config = replace(context.config, recipe=recipe, through={"0": 2})
    null_adapter(load_base(tiny_model), RECIPE, context.folder / ORIGINAL, 1, 5.0)
    questions = load_world().heldout()[40:52]
    said = [
        revision(f"n{i}", wording, fact.answers[0], user)
        for i, (user, (wording, fact)) in enumerate(zip(HELDOUT, questions, strict=True))
    ]
    with closing(open_database(context.trainer_folder)) as db, db:
        batch_table.store_batch(db, batch(said, 2))
    gate_again(context)
    report = GateReport.model_validate_json((context.folder / GATE_RESULT).read_bytes())
    assert report.test is not None
    items = report.test.wins + report.test.losses + report.test.ties
    assert report.new_items == items == report.test.users > 0, "nobody else's feedback is collected any more"
    sentence = f"{items} of the {items} items are from feedback since the version"
    assert report.reasons[-1].startswith(sentence)
    stored = json.loads((context.folder / GATE_REPORT).read_bytes())
    assert stored["report"]["new_items"] == items
    assert sentence in (context.folder / GATE_REPORT_PAGE).read_text()
