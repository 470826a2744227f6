"""Checkpoint manifests, disk space and micro-batches of a run."""

from __future__ import annotations

import errno
import itertools
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from services.trainer.files import write_whole
from services.trainer.run import disk_space, micro_batch
from services.trainer.run.checkpoint_manifest import (
    MANIFEST,
    find_damage,
    intact_checkpoints,
    newest_step,
    write_manifest,
)
from services.trainer.run.folder import CHECKPOINTS
from services.trainer.training import checkpoints
from services.trainer.training.checkpoints import TRAINING_PER_CHECKPOINT, RunCallback, has_stalled

Damage = Callable[[Path], None]


def write_checkpoint(run: Path, step: int, *, complete: bool = True, size: int = 4000) -> Path:
    folder = run / CHECKPOINTS / f"checkpoint-{step}"
    (folder / "more").mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(bytes(step for _ in range(size)))
    (folder / "more" / "rng_state.pth").write_bytes(b"random")
    if complete:
        write_manifest(folder, step)
    return folder


def truncate_file(folder: Path) -> None:
    os.truncate(folder / "optimizer.pt", 100)


def alter_file(folder: Path) -> None:
    file = folder / "optimizer.pt"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)


def delete_file(folder: Path) -> None:
    (folder / "more" / "rng_state.pth").unlink()


def delete_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def truncate_manifest(folder: Path) -> None:
    os.truncate(folder / MANIFEST, 20)


def replace_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text("6")


@pytest.mark.parametrize(
    "damage", [truncate_file, alter_file, delete_file, delete_manifest, truncate_manifest, replace_manifest]
)
def test_damaged_checkpoint_is_skipped_for_the_one_before(damage: Damage, tmp_path: Path) -> None:
    before, newest = write_checkpoint(tmp_path, 4), write_checkpoint(tmp_path, 6)
    assert list(intact_checkpoints(tmp_path / CHECKPOINTS)) == [newest, before]
    damage(newest)
    assert find_damage(newest) is not None
    assert list(intact_checkpoints(tmp_path / CHECKPOINTS)) == [before]


def test_checkpoints_are_ordered_by_step_not_by_name(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        write_checkpoint(tmp_path, step)
    write_checkpoint(tmp_path, 11, complete=False)
    assert newest_step(tmp_path / CHECKPOINTS) == 10
    assert next(intact_checkpoints(tmp_path / CHECKPOINTS)).name == "checkpoint-10"


def test_freeing_space_keeps_the_newest_intact_checkpoint(tmp_path: Path) -> None:
    run, failed = tmp_path / "runs" / "this", tmp_path / "runs" / "failed"
    for step in (2, 4):
        write_checkpoint(run, step)
    alter_file(write_checkpoint(run, 6))
    write_checkpoint(run, 8, complete=False)
    write_checkpoint(failed, 3)
    write_whole(failed / "evidence.json", b"{}")
    (run / ".adapter.incoming").mkdir()
    (run / ".train.parquet.7").write_bytes(b"half")
    write_whole(run / "snapshot.json", b"{}")
    assert disk_space.free_space(run) == 6
    assert [path.name for path in (run / CHECKPOINTS).iterdir()] == ["checkpoint-4"]
    assert sorted(path.name for path in run.iterdir()) == [CHECKPOINTS, "snapshot.json"]
    assert [path.name for path in failed.iterdir()] == ["evidence.json"]


def test_old_checkpoints_make_space_for_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (2, 4):
        write_checkpoint(tmp_path, step)
    checkpoints = tmp_path / CHECKPOINTS
    assert not disk_space.ensure_space_for_checkpoint(checkpoints), "there is enough space"
    free = os.statvfs_result((4096, 4096, 10, 1, 1, 10, 10, 10, 0, 255))
    monkeypatch.setattr(
        disk_space.shutil, "disk_usage", lambda _: type("Usage", (), {"free": free.f_bavail * 4096})
    )
    assert disk_space.ensure_space_for_checkpoint(checkpoints)
    assert [path.name for path in checkpoints.iterdir()] == ["checkpoint-4"]
    assert not disk_space.ensure_space_for_checkpoint(checkpoints), "the newest one stays"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EFBIG, "File too large"),
        sqlite3.OperationalError("database or disk is full"),
        RuntimeError(
            "[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/3"
        ),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_full_disk_is_recognized_in_every_wording_and_as_a_cause(error: Exception) -> None:
    assert disk_space.is_disk_full_error(error)
    outer = ValueError("could not save")
    outer.__cause__ = error
    assert disk_space.is_disk_full_error(outer)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EACCES, "Permission denied"), sqlite3.OperationalError("locked"), ValueError("28")],
)
def test_other_errors_do_not_mean_a_full_disk(error: Exception) -> None:
    assert not disk_space.is_disk_full_error(error)


def test_micro_batch_is_halved_down_to_the_longest_row(tmp_path: Path) -> None:
    for tokens, longest, sizes in ((800, 100, [400, 200, 100]), (700, 300, [350, 300]), (90, 100, [])):
        run = tmp_path / str(tokens)
        assert micro_batch.halve(run) is None, "training has not started"
        micro_batch.start(run, tokens, longest)
        assert micro_batch.reduction_note(run) is None
        found = []
        while (after := micro_batch.halve(run)) is not None:
            found.append(after)
            assert micro_batch.start(run, tokens, longest).tokens == after
        assert found == sizes
        assert not micro_batch.can_halve(run)
    assert "micro-batches of 100 tokens" in (micro_batch.reduction_note(tmp_path / "800") or "")


def test_resumed_run_keeps_its_micro_batch(tmp_path: Path) -> None:
    micro_batch.start(tmp_path, 800, 100)
    micro_batch.halve(tmp_path)
    assert micro_batch.start(tmp_path, 800, 100).tokens == 400


def test_oom_kills_of_the_container_are_preferred_to_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    container, machine = tmp_path / "memory.events", tmp_path / "vmstat"
    monkeypatch.setattr(micro_batch, "OOM_KILL_COUNTERS", (container, machine))
    assert micro_batch.kernel_oom_kills() is None
    machine.write_text("pgfault 7\noom_kill 12\n")
    assert micro_batch.kernel_oom_kills() == 12
    container.write_text("low 0\noom 4\noom_kill 3\noom_group_kill 9\n")
    assert micro_batch.kernel_oom_kills() == 3


@pytest.mark.parametrize(
    ("losses", "patience", "stalled"),
    [
        ([3, 2, 1], 1, False),
        ([1, 2], 1, True),
        ([1, 2], 2, False),
        ([1, 2, 1.5], 2, True),
        ([1, 2, 0.9], 2, False),
        ([1, 1], 1, True),
        ([1, 2, 3, 4], 0, False),
        ([], 1, False),
    ],
)
def test_loss_stalls_after_patience_evaluations(losses: list[float], patience: int, stalled: bool) -> None:
    assert has_stalled(losses, patience) == stalled


@pytest.mark.parametrize("write_s", [1.0, 90.0])
def test_at_most_a_twentieth_of_the_time_goes_into_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_s: float
) -> None:
    now = 0.0
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(disk_space, "ensure_space_for_checkpoint", lambda _: None)
    none: Any = None
    callback = RunCallback(none, threading.Event(), checkpoint_minutes=5)
    arguments: Any = SimpleNamespace(output_dir=str(tmp_path))
    state, saved = TrainerState(), []
    callback.on_train_begin(arguments, state, TrainerControl())
    while now < 20_000:
        now += 10
        control = TrainerControl()
        callback.on_step_end(arguments, state, control)
        if control.should_save:
            saved.append(now)
            now += write_s
            callback.on_save(arguments, state, control)
    between = [after - before - write_s for before, after in itertools.pairwise(saved)]
    assert saved[0] == 300
    assert all(gap >= max(300, TRAINING_PER_CHECKPOINT * write_s) for gap in between)
    assert max(between) < max(300, TRAINING_PER_CHECKPOINT * write_s) + 20, "and no later than necessary"
