"""A run that failed at its gate goes on from there, and never trains again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from services.trainer.dataset import snapshot_files
from services.trainer.files import write_whole
from services.trainer.run import run_table
from services.trainer.run.folder import (
    ADAPTER,
    ENVIRONMENTS,
    EVAL_BATCH,
    FAILURE_REASON,
    GATE_RESULT,
    ExitCode,
)
from services.trainer.service import Trainer
from tests.trainer_factories import TrainerRig, finish_run, run_steps
from tests.unit.test_trainer_service import corrections, results, send, train_now, trained


def fail_at_the_gate(folder: Path) -> int:
    """Stand for the processes of a run whose training succeeds and whose gate fails."""
    if not (folder / ADAPTER).exists():
        finish_run(folder)
        (folder / GATE_RESULT).unlink()
        write_whole(folder / ENVIRONMENTS, b"[]")
        return ExitCode.DONE
    write_whole(folder / EVAL_BATCH, b'{"generate": 1, "score": 1}')
    write_whole(folder / FAILURE_REASON, b"golden set: line 3 is no JSON")
    return ExitCode.FAILED


def stages(trainer: Trainer) -> list[str]:
    return [str(run.stage) for run in run_table.all_runs(trainer.db)]


@pytest.fixture
def failed(tmp_path: Path) -> TrainerRig:
    """A line whose only run has failed at its gate."""
    rig = TrainerRig(tmp_path, fail_at_the_gate)
    send(rig, corrections())
    trainer = rig.trainer()
    run_steps(trainer)
    assert stages(trainer) == ["failed"]
    assert (rig.started[0] / ADAPTER).exists()
    rig.process = finish_run
    return rig


def test_failed_gate_goes_on_when_the_trainer_starts_again(failed: TrainerRig) -> None:
    started = len(failed.started)
    trainer = failed.trainer()
    run_steps(trainer)
    assert stages(trainer) == ["published"]
    assert len(failed.started) == started + 1, "the gate alone"
    assert not (failed.started[0] / EVAL_BATCH).exists(), "batches have their usual size again"
    assert [version.run_id for version in trained(failed)] == [failed.started[0].name]


def test_gate_that_keeps_failing_is_tried_once_per_start(failed: TrainerRig) -> None:
    failed.process = fail_at_the_gate
    started = len(failed.started)
    for starts in (1, 2):
        trainer = failed.trainer()
        run_steps(trainer, 12)
        assert (stages(trainer), len(failed.started)) == (["failed"], started + starts)


def test_train_now_goes_on_at_a_failed_gate(failed: TrainerRig) -> None:
    trainer = failed.trainer()
    trainer.may_take_up = False
    train_now(failed, "c1")
    run_steps(trainer)
    assert stages(trainer) == ["published"]
    (result,) = results(failed)
    assert (result.status, "goes on at its gate" in result.message) == ("done", True)


def test_adapter_is_gated_against_the_version_that_is_stable_now(
    failed: TrainerRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = failed.trainer()
    other = trainer.base.ref("other-line")
    monkeypatch.setattr(trainer.versions, "stable", lambda _: other)
    monkeypatch.setattr(trainer.versions, "find", lambda _: None)
    failed.process = lambda _: None
    run_steps(trainer)
    run = run_table.newest(trainer.db)
    assert run is not None
    assert (run.stage, run.config.stable) == ("trained", other)


def test_new_run_replaces_a_failed_gate(failed: TrainerRig) -> None:
    trainer = failed.trainer()
    trainer.may_take_up = False
    send(failed, corrections(2))
    run_steps(trainer)
    assert stages(trainer) == ["failed", "published"]
    assert not (failed.started[0] / ADAPTER).exists()
    assert stages(failed.trainer()) == ["failed", "published"]


@pytest.mark.parametrize("lost", ["adapter", "snapshot", "base"])
def test_failed_gate_without_its_results_is_not_taken_up(failed: TrainerRig, lost: str) -> None:
    trainer = failed.trainer()
    match lost:
        case "adapter":
            (failed.started[0] / ADAPTER).rmdir()
        case "snapshot":
            (failed.started[0] / snapshot_files.SNAPSHOT).unlink()
        case "base":
            trainer.base = replace(trainer.base, digest="cd" * 32)
    run_steps(trainer)
    assert stages(trainer) == ["failed"]


def test_failed_gate_with_erased_rows_is_not_taken_up(
    failed: TrainerRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = failed.trainer()
    monkeypatch.setattr(type(trainer.erasures), "has_erased_rows", lambda *_: True)
    run_steps(trainer)
    assert stages(trainer) == ["failed"]
