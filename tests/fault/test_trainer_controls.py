"""The oracle of the trainer's kills catches broken variants: each one way in which a resumed run goes wrong."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from services.trainer.dataset import batch_table, snapshot
from services.trainer.files import write_whole
from services.trainer.run.folder import ARTIFACT, GATE_RESULT
from services.trainer.run.run_table import RunConfig
from services.trainer.versions.publish import VersionLog
from shared.versions import GateReport, ModelVersion
from tests.fault.trainer_oracle import Seen, complaints, weights_of
from tests.trainer_factories import LINE, Rig, turns
from tests.unit.test_trainer_service import corrections, send, trained

KILLED = -9
Step = Callable[[Path], None]


def takes_its_snapshot(folder: Path) -> None:
    """From what its configuration names, once."""
    if not snapshot.is_complete(folder):
        config = RunConfig.from_json((folder / "config.json").read_text())
        with closing(sqlite3.connect(folder.parent.parent / "trainer.sqlite3")) as db:
            taken = snapshot.build(LINE, batch_table.current_examples(db, config.through), config.through)
        snapshot.write(folder, taken, 10)


def takes_a_new_snapshot(folder: Path) -> None:
    """Of whatever the table has by now, at every start."""
    with closing(sqlite3.connect(folder.parent.parent / "trainer.sqlite3")) as db:
        through = batch_table.through(db)
        taken = snapshot.build(LINE, batch_table.current_examples(db, through), through)
    snapshot.write(folder, taken, 10)


def learns(folder: Path) -> None:
    """Once: what is there is not trained again. Stands for training, in which each row leaves its mark."""
    place = folder / "adapter"
    if not place.exists():
        rows = [one.row.event_id for one in snapshot.read_rows(folder)]
        write_whole(place / "adapter_model.safetensors", repr(rows).encode())


def learns_on(folder: Path) -> None:
    """From what it had learned before, but from the first row again."""
    place = folder / "adapter" / "adapter_model.safetensors"
    before = place.read_bytes() if place.exists() else b""
    rows = [one.row.event_id for one in snapshot.read_rows(folder)]
    write_whole(place, before + repr(rows).encode())


def the_end(folder: Path) -> int:
    shutil.copytree(folder / "adapter", folder / ARTIFACT, dirs_exist_ok=True)
    report = GateReport.model_validate({"verdict": "passed", "gated_against": f"{LINE}@base-{'ab' * 4}"})
    write_whole(folder / GATE_RESULT, report.model_dump_json().encode())
    return 0


def run_killed_twice(root: Path, snapshots: Step, learning: Step) -> Seen:
    """Killed after each of its two stages, while more comes in."""
    seen, rig = Seen(), Rig(root / "killed", the_end)

    def child(folder: Path) -> int:
        snapshots(folder)
        seen.look(folder.parent)
        learning(folder)
        return KILLED if len(rig.started) < 3 else the_end(folder)

    rig.child = child
    send(rig, corrections())
    turns(rig.trainer(), 3)
    send(rig, corrections(2))
    trainer = rig.trainer(examples=100)
    for _ in range(4):
        turns(trainer, 3)
        rig.clock.advance(60)
    seen.versions = trained(rig)
    for one in seen.versions:
        folder = trainer.store.fetch(one.ref.uri, one.ref.digest)
        seen.weights[one.ref.version] = weights_of(folder)
    alone = root / "alone" / "runs" / "again"
    alone.mkdir(parents=True)
    for name in ("trainer.sqlite3", "trainer.sqlite3-wal"):
        shutil.copy(rig.started[0].parent.parent / name, root / "alone")
    shutil.copy(rig.started[0] / "config.json", alone)
    takes_its_snapshot(alone)
    learns(alone)
    seen.uninterrupted = weights_of(alone / "adapter")
    seen.dataset_again = snapshot.read_ref(alone).digest
    return seen


def caught(seen: Seen) -> set[str]:
    return {one.partition(":")[0] for one in complaints(seen)}


def test_a_run_as_it_should_be_has_nothing_to_complain_of(tmp_path: Path) -> None:
    assert list(complaints(run_killed_twice(tmp_path, takes_its_snapshot, learns))) == []


@pytest.mark.parametrize(
    ("snapshots", "learning", "expected"),
    [
        (takes_a_new_snapshot, learns, {"I5 dataset"}),
        (takes_its_snapshot, learns_on, {"weights"}),
    ],
)
def test_a_resumed_run_that_begins_with_other_data_or_learns_twice_is_caught(
    snapshots: Step, learning: Step, expected: set[str], tmp_path: Path
) -> None:
    assert caught(run_killed_twice(tmp_path, snapshots, learning)) >= expected


def test_a_trainer_that_publishes_before_the_log_is_read_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a crash between the version in the log and the note of it."""
    rig = Rig(tmp_path, the_end)

    def child(folder: Path) -> int:
        takes_its_snapshot(folder)
        learns(folder)
        return the_end(folder)

    rig.child = child
    send(rig, corrections())
    trainer = rig.trainer()
    turns(trainer)
    with trainer.db:
        trainer.db.execute("UPDATE runs SET stage = 'gated'")

    def nothing(_self: VersionLog) -> list[ModelVersion]:
        return []

    monkeypatch.setattr(VersionLog, "versions", nothing)
    turns(rig.trainer())
    seen = Seen(versions=trained(rig))
    seen.look(rig.started[0].parent)
    assert "I6 published" in caught(seen)
