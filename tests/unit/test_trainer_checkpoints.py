"""Checkpoints count when they are marked and as they were marked; memory and room decide what a run can go on with."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from services.trainer.files import write_whole
from services.trainer.run import disk_space, micro_batch
from services.trainer.run.checkpoint_manifest import (
    MANIFEST,
    find_damage,
    intact_checkpoints,
    newest_step,
    write_manifest,
)
from services.trainer.run.folder import CHECKPOINTS, MICRO_BATCH

Hurt = Callable[[Path], None]


def checkpoint(run: Path, step: int, *, marked: bool = True, size: int = 4000) -> Path:
    folder = run / CHECKPOINTS / f"checkpoint-{step}"
    (folder / "more").mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(bytes(step for _ in range(size)))
    (folder / "more" / "rng_state.pth").write_bytes(b"random")
    if marked:
        write_manifest(folder, step)
    return folder


def cut(folder: Path) -> None:
    os.truncate(folder / "optimizer.pt", 100)


def altered(folder: Path) -> None:
    file = folder / "optimizer.pt"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)


def gone(folder: Path) -> None:
    (folder / "more" / "rng_state.pth").unlink()


def unmarked(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def mark_cut(folder: Path) -> None:
    os.truncate(folder / MANIFEST, 20)


def marked_by_an_older_release(folder: Path) -> None:
    (folder / MANIFEST).write_text("6")


@pytest.mark.parametrize("hurt", [cut, altered, gone, unmarked, mark_cut, marked_by_an_older_release])
def test_what_is_not_as_it_was_marked_does_not_count_and_the_one_before_does(
    hurt: Hurt, tmp_path: Path
) -> None:
    before, newest = checkpoint(tmp_path, 4), checkpoint(tmp_path, 6)
    assert list(intact_checkpoints(tmp_path / CHECKPOINTS)) == [newest, before]
    hurt(newest)
    assert find_damage(newest) is not None
    assert list(intact_checkpoints(tmp_path / CHECKPOINTS)) == [before]


def test_checkpoints_are_ordered_by_their_step_and_not_by_their_name(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        checkpoint(tmp_path, step)
    checkpoint(tmp_path, 11, marked=False)
    assert newest_step(tmp_path / CHECKPOINTS) == 10
    assert next(intact_checkpoints(tmp_path / CHECKPOINTS)).name == "checkpoint-10"


def test_what_is_freed_on_a_full_disk_is_never_the_newest_good_checkpoint(tmp_path: Path) -> None:
    run, failed = tmp_path / "runs" / "this", tmp_path / "runs" / "failed"
    for step in (2, 4):
        checkpoint(run, step)
    altered(checkpoint(run, 6))
    checkpoint(run, 8, marked=False)
    checkpoint(failed, 3)
    write_whole(failed / "evidence.json", b"{}")
    (run / ".adapter.incoming").mkdir()
    (run / ".train.parquet.7").write_bytes(b"half")
    write_whole(run / "snapshot.json", b"{}")
    assert disk_space.free_space(run) == 6
    assert [path.name for path in (run / CHECKPOINTS).iterdir()] == ["checkpoint-4"]
    assert sorted(path.name for path in run.iterdir()) == [CHECKPOINTS, "snapshot.json"]
    assert [path.name for path in failed.iterdir()] == ["evidence.json"]


def test_before_a_checkpoint_that_would_not_fit_the_older_ones_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (2, 4):
        checkpoint(tmp_path, step)
    checkpoints = tmp_path / CHECKPOINTS
    assert not disk_space.ensure_space_for_checkpoint(checkpoints), "there is room"
    free = os.statvfs_result((4096, 4096, 10, 1, 1, 10, 10, 10, 0, 255))
    monkeypatch.setattr(
        disk_space.shutil, "disk_usage", lambda _: type("Usage", (), {"free": free.f_bavail * 4096})
    )
    assert disk_space.ensure_space_for_checkpoint(checkpoints)
    assert [path.name for path in checkpoints.iterdir()] == ["checkpoint-4"]
    assert not disk_space.ensure_space_for_checkpoint(checkpoints), "the last one stays"


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
def test_a_full_disk_is_known_however_it_is_worded_and_behind_whatever_it_caused(error: Exception) -> None:
    assert disk_space.is_disk_full_error(error)
    outer = ValueError("could not save")
    outer.__cause__ = error
    assert disk_space.is_disk_full_error(outer)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EACCES, "Permission denied"), sqlite3.OperationalError("locked"), ValueError("28")],
)
def test_other_errors_are_no_full_disk(error: Exception) -> None:
    assert not disk_space.is_disk_full_error(error)


def test_a_batch_is_halved_down_to_one_row_and_always_into_equal_pieces(tmp_path: Path) -> None:
    for batch, pieces in ((8, [4, 2, 1]), (6, [3, 1]), (7, [1]), (1, [])):
        run = tmp_path / str(batch)
        assert micro_batch.reduction_note(run, batch) is None
        found = []
        while (after := micro_batch.halve(run, batch)) is not None:
            found.append(after)
            assert micro_batch.size(run, batch) == after
        assert found == pieces
    assert "in pieces of 1" in (micro_batch.reduction_note(tmp_path / "8", 8) or "")


def test_pieces_that_do_not_divide_the_batch_are_not_taken(tmp_path: Path) -> None:
    write_whole(tmp_path / MICRO_BATCH, json.dumps({"micro_batch": 3}).encode())
    assert micro_batch.size(tmp_path, 8) == 8


def test_a_lack_of_memory_is_known_on_cpu_and_gpu() -> None:
    assert micro_batch.is_out_of_memory(MemoryError())
    assert micro_batch.is_out_of_memory(
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")
    )
    assert micro_batch.is_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert not micro_batch.is_out_of_memory(RuntimeError("size mismatch"))
    assert not micro_batch.is_out_of_memory(ValueError("out of memory"))


def test_the_kernel_s_count_is_of_the_container_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    container, machine = tmp_path / "memory.events", tmp_path / "vmstat"
    monkeypatch.setattr(micro_batch, "OOM_KILL_COUNTERS", (container, machine))
    assert micro_batch.kernel_oom_kills() is None
    machine.write_text("pgfault 7\noom_kill 12\n")
    assert micro_batch.kernel_oom_kills() == 12
    container.write_text("low 0\noom 4\noom_kill 3\noom_group_kill 9\n")
    assert micro_batch.kernel_oom_kills() == 3
