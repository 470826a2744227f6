"""The gate compares a candidate with a control: trained like it, in processes of its own, on permuted answers."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from services.trainer.dataset import snapshot_files
from services.trainer.files import write_whole
from services.trainer.run.context import RunContext
from services.trainer.run.folder import ADAPTER, CONFIG, CONTROL, GATE_PARTS, GATE_RESULT, SNAPSHOT
from services.trainer.run.position import position_of
from services.trainer.worker import control_run
from services.trainer.worker.pipeline import run_next_part
from shared.versions import GateReport
from tests.integration.test_trainer_gate import RECIPE, run_context
from tests.trainer_factories import grouped, row

SHORT = RECIPE.model_copy(
    update={"epochs": 1.0, "replay_prompts": 2, "tokens_per_step": 4000, "gate_control": "always"}
)


def context_of_run(tiny_model: Path, folder: Path, **recipe: object) -> RunContext:
    """Return a run with a snapshot, as the next process finds it."""
    context = run_context(tiny_model, folder)
    return next_process(context, replace(context.config, recipe=SHORT.model_copy(update=recipe)))


def next_process(context: RunContext, config: object = None) -> RunContext:
    """Return the context of another process of the same run."""
    return RunContext(
        context.folder,
        config or context.config,
        context.settings,
        context.progress,
        context.stop,  # type: ignore[arg-type]
    )


def test_run_trains_a_control_and_compares_the_candidate_with_it(tiny_model: Path, tmp_path: Path) -> None:
    context = context_of_run(tiny_model, tmp_path)
    positions = []
    while not (context.folder / GATE_RESULT).exists():
        positions.append(position_of(context.folder))
        run_next_part(next_process(context))
    assert positions == ["base answers", "gate", "control: base answers", "gate with control"]
    report = GateReport.model_validate_json((context.folder / GATE_RESULT).read_bytes())
    assert report.control_state != "not_run"
    assert report.test is not None
    assert report.control is not None
    assert (report.control.users, report.control.groups) == (report.test.users, report.test.groups)
    assert not (context.folder / GATE_PARTS).exists()
    trained, control = (
        snapshot_files.read_rows(folder) for folder in (context.folder, context.folder / CONTROL)
    )
    assert [one.row.messages for one in control] == [one.row.messages for one in trained]
    assert [one.row.answer for one in control] != [one.row.answer for one in trained]
    weights = [
        folder / ADAPTER / "adapter_model.safetensors"
        for folder in (context.folder, context.folder / CONTROL)
    ]
    assert weights[0].read_bytes() != weights[1].read_bytes()


def test_candidate_that_fails_otherwise_needs_no_control(tiny_model: Path, tmp_path: Path) -> None:
    context = context_of_run(tiny_model, tmp_path, gate_control="auto")
    for _ in range(2):
        run_next_part(next_process(context))
    report = GateReport.model_validate_json((context.folder / GATE_RESULT).read_bytes())
    assert (report.verdict != "passed", report.control_state) == (True, "not_run")
    assert not (context.folder / CONTROL).exists()


@pytest.fixture
def trained(tiny_model: Path, tmp_path: Path) -> RunContext:
    """A run whose control is trained."""
    context = context_of_run(tiny_model, tmp_path)
    control_run.begin(context)
    (context.folder / CONTROL / ADAPTER).mkdir()
    return context


def later_run(context: RunContext, rows: int, **recipe: object) -> RunContext:
    """Return a later run of the same line with more rows."""
    folder = context.folder.with_name("r-2")
    shutil.copytree(context.folder, folder, ignore=shutil.ignore_patterns(CONTROL))
    more = [row(f"Question {i}?", f"Answer {i}.", f"more-{i}", f"m{i}") for i in range(rows)]
    old = snapshot_files.read_rows(context.folder)
    snapshot = snapshot_files.Snapshot((*old, *grouped(more)), (), (), {"0": 2})
    snapshot_files.write(folder, snapshot, tokens=10)
    config = replace(context.config, run_id="r-2", recipe=context.config.recipe.model_copy(update=recipe))
    return RunContext(folder, config, context.settings, context.progress, context.stop)


def test_later_run_uses_a_control_while_little_has_changed(trained: RunContext) -> None:
    rows = snapshot_files.read_ref(trained.folder).examples
    control = trained.folder / CONTROL / ADAPTER
    assert control_run.adapter_of(later_run(trained, rows // 2)) == control
    for changed in ({"learning_rate": 1e-4}, {"seed": 77}, {"epochs": 2.0}):
        shutil.rmtree(trained.folder.with_name("r-2"))
        assert control_run.adapter_of(later_run(trained, 1, **changed)) is None
    shutil.rmtree(trained.folder.with_name("r-2"))
    assert control_run.adapter_of(later_run(trained, rows)) is None, "it has grown too much"


def test_control_that_an_erasure_has_redacted_is_not_used(trained: RunContext) -> None:
    later = later_run(trained, 1)
    (trained.folder / CONTROL / SNAPSHOT).unlink()
    assert control_run.adapter_of(later) is None


def test_newest_usable_control_is_used(trained: RunContext) -> None:
    other = trained.folder.with_name("r-0")
    shutil.copytree(trained.folder, other)
    os.utime(other / CONTROL / ADAPTER, (1, 1))
    later = later_run(trained, 1)
    assert control_run.adapter_of(later) == trained.folder / CONTROL / ADAPTER
    write_whole(
        trained.folder / CONTROL / CONFIG, replace(trained.config, base_digest="1" * 64).to_json().encode()
    )
    assert control_run.adapter_of(later) == other / CONTROL / ADAPTER
