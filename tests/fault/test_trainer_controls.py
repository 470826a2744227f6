"""Negative controls of I5 and I6: the trainer's oracle catches runs that resume wrongly."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from services.trainer.dataset import batch_table, snapshot, snapshot_files
from services.trainer.files import write_whole
from services.trainer.run.folder import ARTIFACT, GATE_RESULT
from services.trainer.run.run_table import RunConfig
from services.trainer.versions.publish import VersionLog
from shared.versions import GateReport, ModelVersion
from tests.fault.trainer_oracle import Observations, violations, weights_of
from tests.trainer_factories import LINE, TrainerRig, run_steps
from tests.unit.test_trainer_service import corrections, send, trained

KILLED = -9
Stage = Callable[[Path], None]


def take_snapshot_once(folder: Path) -> None:
    """Take the snapshot that the configuration names, unless it exists."""
    if not snapshot_files.is_complete(folder):
        config = RunConfig.from_json((folder / "config.json").read_text())
        with closing(sqlite3.connect(folder.parent.parent / "trainer.sqlite3")) as db:
            taken = snapshot.build(LINE, batch_table.current_examples(db, config.through), config.through)
        snapshot_files.write(folder, taken, 10)


def take_snapshot_at_every_start(folder: Path) -> None:
    """Take a snapshot of the current table, even if there is one."""
    with closing(sqlite3.connect(folder.parent.parent / "trainer.sqlite3")) as db:
        through = batch_table.through(db)
        taken = snapshot.build(LINE, batch_table.current_examples(db, through), through)
    snapshot_files.write(folder, taken, 10)


def train_once(folder: Path) -> None:
    """Write an adapter that depends on every row, unless it exists."""
    place = folder / "adapter"
    if not place.exists():
        rows = [record.row.event_id for record in snapshot_files.read_rows(folder)]
        write_whole(place / "adapter_model.safetensors", repr(rows).encode())


def train_again_from_the_first_row(folder: Path) -> None:
    """Continue the adapter, but with all rows once more."""
    place = folder / "adapter" / "adapter_model.safetensors"
    before = place.read_bytes() if place.exists() else b""
    rows = [record.row.event_id for record in snapshot_files.read_rows(folder)]
    write_whole(place, before + repr(rows).encode())


def finish_run(folder: Path) -> int:
    shutil.copytree(folder / "adapter", folder / ARTIFACT, dirs_exist_ok=True)
    report = GateReport.model_validate({"verdict": "passed", "gated_against": f"{LINE}@base-{'ab' * 4}"})
    write_whole(folder / GATE_RESULT, report.model_dump_json().encode())
    return 0


def run_killed_twice(root: Path, take_snapshot: Stage, train: Stage) -> Observations:
    """Kill a run after each of its two stages, while more feedback arrives. Return the observations."""
    observations, rig = Observations(), TrainerRig(root / "killed", finish_run)

    def child(folder: Path) -> int:
        take_snapshot(folder)
        observations.observe(folder.parent)
        train(folder)
        return KILLED if len(rig.started) < 3 else finish_run(folder)

    rig.process = child
    send(rig, corrections())
    run_steps(rig.trainer(), 3)
    send(rig, corrections(2))
    trainer = rig.trainer(examples=100)
    for _ in range(4):
        run_steps(trainer, 3)
        rig.clock.advance(60)
    observations.versions = trained(rig)
    for version in observations.versions:
        folder = trainer.store.fetch(version.ref.uri, version.ref.digest)
        observations.weights[version.ref.version] = weights_of(folder)
    undisturbed = root / "undisturbed" / "runs" / "again"
    undisturbed.mkdir(parents=True)
    for name in ("trainer.sqlite3", "trainer.sqlite3-wal"):
        shutil.copy(rig.started[0].parent.parent / name, root / "undisturbed")
    shutil.copy(rig.started[0] / "config.json", undisturbed)
    take_snapshot_once(undisturbed)
    train_once(undisturbed)
    observations.undisturbed_weights = weights_of(undisturbed / "adapter")
    observations.retaken_dataset = snapshot_files.read_ref(undisturbed).digest
    return observations


def violation_names(observations: Observations) -> set[str]:
    return {violation.partition(":")[0] for violation in violations(observations)}


def test_correct_run_has_no_violations(tmp_path: Path) -> None:
    assert list(violations(run_killed_twice(tmp_path, take_snapshot_once, train_once))) == []


@pytest.mark.parametrize(
    ("take_snapshot", "train", "expected"),
    [
        (take_snapshot_at_every_start, train_once, {"I5 dataset"}),
        (take_snapshot_once, train_again_from_the_first_row, {"weights"}),
    ],
)
def test_oracle_catches_other_data_and_rows_trained_twice(
    take_snapshot: Stage, train: Stage, expected: set[str], tmp_path: Path
) -> None:
    assert violation_names(run_killed_twice(tmp_path, take_snapshot, train)) >= expected


def test_oracle_catches_a_version_published_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer does not read the log after a crash between publishing and recording that it has published."""
    rig = TrainerRig(tmp_path, finish_run)

    def child(folder: Path) -> int:
        take_snapshot_once(folder)
        train_once(folder)
        return finish_run(folder)

    rig.process = child
    send(rig, corrections())
    trainer = rig.trainer()
    run_steps(trainer)
    with trainer.db:
        trainer.db.execute("UPDATE runs SET stage = 'gated'")

    def no_versions(_self: VersionLog) -> list[ModelVersion]:
        return []

    monkeypatch.setattr(VersionLog, "versions", no_versions)
    run_steps(rig.trainer())
    observations = Observations(versions=trained(rig))
    observations.observe(rig.started[0].parent)
    assert "I6 published" in violation_names(observations)
