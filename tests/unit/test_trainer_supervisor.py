"""What the service makes of how a run's process ends, over the log in memory; the processes do what the test says."""

from __future__ import annotations

import errno
import json
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.trainer.dataset import snapshot
from services.trainer.files import write_whole
from services.trainer.run import micro_batch, run_table
from services.trainer.run.checkpoint_manifest import write_manifest
from services.trainer.run.context import RunFailed, RunStopped
from services.trainer.run.folder import CHECKPOINTS, FAILURE_REASON, MICRO_BATCH, ExitCode
from services.trainer.run.run_table import RunConfig
from services.trainer.worker.pipeline import run_to_exit_code
from services.trainer.worker.restart_policy import MAX_KILLS
from shared.adapters import redis_keys
from tests.trainer_factories import LINE, TrainerRig, finish_run, run_steps
from tests.unit.test_trainer_publish import run as config_of
from tests.unit.test_trainer_service import corrections, send, trained

KILLED = -signal.SIGKILL


def told(rig: TrainerRig) -> dict[str, object]:
    found: dict[str, object] = json.loads(rig.cache.get(redis_keys.run_progress(LINE)) or b"{}")
    return found


def snapshot_only(folder: Path) -> None:
    """As after the first stage."""
    if not snapshot.is_complete(folder):
        finish_run(folder)
        (folder / "gate.json").unlink()
        (folder / "adapter").rmdir()


def checkpoint(folder: Path, step: int) -> None:
    place = folder / CHECKPOINTS / f"checkpoint-{step}"
    place.mkdir(parents=True)
    (place / "state.json").write_text("{}")
    write_manifest(place, step)


def patiently(
    rig: TrainerRig, ends: Iterator[int], *, before: Callable[[Path], None] = snapshot_only
) -> list[str]:
    """Runs until nothing starts any more; the stages of all runs."""

    def child(folder: Path) -> int:
        before(folder)
        status = next(ends, None)
        return finish_run(folder) if status is None else status

    rig.process = child
    send(rig, corrections())
    trainer = rig.trainer()
    for _ in range(3 * MAX_KILLS):
        run_steps(trainer, 2)
        rig.clock.advance(60)
    return [run.stage for run in run_table.all_runs(trainer.db)]


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainerRig:
    monkeypatch.setattr(micro_batch, "OOM_KILL_COUNTERS", ())
    return TrainerRig(tmp_path, finish_run)


def test_a_process_killed_three_times_at_one_place_takes_smaller_pieces_and_says_so(rig: TrainerRig) -> None:
    assert patiently(rig, iter([KILLED] * 2)) == ["published"]
    assert not (rig.started[0] / MICRO_BATCH).exists()
    again = TrainerRig(rig.folder / "again", finish_run)
    said: list[object] = []

    def listening(folder: Path) -> None:
        snapshot_only(folder)
        said.append(told(again).get("reason"))

    assert patiently(again, iter([KILLED] * 3), before=listening) == ["published"]
    assert micro_batch.size(again.started[0], 8) == 4
    assert said[-1] == "memory did not suffice for 8 rows at a time: each step takes 8 in pieces of 4"


def test_a_kill_for_memory_that_the_kernel_counts_halves_at_the_first(
    rig: TrainerRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = rig.folder / "memory.events"
    monkeypatch.setattr(micro_batch, "OOM_KILL_COUNTERS", (count,))

    def for_memory(folder: Path) -> None:
        snapshot_only(folder)
        count.write_text(f"oom_kill {len(rig.started)}")

    count.write_text("oom_kill 0")
    assert patiently(rig, iter([KILLED]), before=for_memory) == ["published"]
    assert micro_batch.size(rig.started[0], 8) == 4


def test_kills_with_checkpoints_between_them_are_not_taken_for_a_lack_of_memory(rig: TrainerRig) -> None:
    steps = iter(range(1, 100))

    def getting_on(folder: Path) -> None:
        snapshot_only(folder)
        checkpoint(folder, next(steps))

    assert patiently(rig, iter([KILLED] * 2 * MAX_KILLS), before=getting_on) == ["published"]
    assert len(rig.started) == 2 * MAX_KILLS + 1
    assert not (rig.started[0] / MICRO_BATCH).exists()


def test_what_is_killed_for_ever_fails_with_a_reason_and_the_line_trains_again_at_its_threshold(
    rig: TrainerRig,
) -> None:
    assert patiently(rig, iter([KILLED] * MAX_KILLS)) == ["failed"]
    assert len(rig.started) == MAX_KILLS
    assert micro_batch.size(rig.started[0], 8) == 1
    assert "killed 12 times" in str(told(rig)["reason"])
    send(rig, corrections(2))
    rig.process = finish_run
    trainer = rig.trainer()
    run_steps(trainer)
    assert [run.stage for run in run_table.all_runs(trainer.db)] == ["failed", "published"]
    assert [version.run_id for version in trained(rig)] == [rig.started[-1].name]


def test_going_down_with_the_service_again_and_again_is_noticed_too(rig: TrainerRig) -> None:
    """As where a container's limit ends all that is in it: nobody is left to see the status."""

    def child(folder: Path) -> None:
        snapshot_only(folder)

    rig.process = child
    send(rig, corrections())

    def cut_off(times: int) -> None:
        for _ in range(times):
            trainer = rig.trainer()
            run_steps(trainer, 3)
            rig.clock.advance(60)
            run_steps(trainer, 2)

    cut_off(4)
    assert micro_batch.size(rig.started[0], 8) == 4
    cut_off(MAX_KILLS)
    assert [run.stage for run in run_table.all_runs(rig.trainer().db)] == ["failed"]


def test_a_service_stopped_in_order_any_number_of_times_counts_nothing(rig: TrainerRig) -> None:
    def child(folder: Path) -> None:
        snapshot_only(folder)

    rig.process = child
    send(rig, corrections())
    for _ in range(2 * MAX_KILLS):
        trainer = rig.trainer()
        run_steps(trainer, 3)
        trainer.supervisor.stop()
    assert {folder.name for folder in rig.started} == {rig.started[0].name}
    assert [run.stage for run in run_table.all_runs(rig.trainer().db)] == ["snapshot"]
    assert not (rig.started[0] / MICRO_BATCH).exists()


def test_a_full_disk_is_waited_for_and_named_and_never_ends_the_run(rig: TrainerRig) -> None:
    said = []

    def child(folder: Path) -> int:
        said.append(str(told(rig).get("reason", "")))
        return ExitCode.DISK_FULL if len(said) <= MAX_KILLS + 8 else finish_run(folder)

    rig.process = child
    send(rig, corrections())
    trainer = rig.trainer()
    for _ in range(MAX_KILLS + 12):
        run_steps(trainer, 3)
        rig.clock.advance(60)
    assert [run.stage for run in run_table.all_runs(trainer.db)] == ["published"]
    assert len(trained(rig)) == 1
    assert "Free some space there; the run resumes automatically" in said[-1]


def test_between_two_tries_on_a_full_disk_it_waits_longer_and_longer(rig: TrainerRig) -> None:
    rig.process = lambda folder: ExitCode.DISK_FULL
    send(rig, corrections())
    trainer = rig.trainer()
    started = []
    for _ in range(40):
        run_steps(trainer, 3)
        started.append(len(rig.started))
        rig.clock.advance(1)
    assert 4 <= started[-1] <= 8


def test_a_table_on_a_full_disk_loses_nothing_of_what_was_read(rig: TrainerRig) -> None:
    """The service says so, tries again, and reads no further meanwhile."""
    trainer = rig.trainer()

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    send(rig, corrections())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("services.trainer.dataset.batch_table.store_positions", full)
        assert [trainer.run_once() for _ in range(3)] == [False] * 3
        send(rig, corrections(2))
        assert not trainer.run_once()
    for _ in range(8):
        assert trainer.run_once()
    assert len(trained(rig)) >= 1
    assert dict(run_table.all_runs(trainer.db)[-1].config.through) == {"0": 2}


def test_an_error_that_is_no_full_disk_ends_the_service(rig: TrainerRig) -> None:
    trainer = rig.trainer()
    send(rig, corrections())
    trainer.db.execute("DROP TABLE batches")
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        trainer.run_once()


# --- how the process says it ---


def raising(error: BaseException) -> Callable[[], None]:
    def done() -> None:
        raise error

    return done


@pytest.fixture
def training(tmp_path: Path) -> tuple[Path, RunConfig]:
    """The folder of a run that is about to train."""
    folder = tmp_path / "runs" / "run-1"
    folder.mkdir(parents=True)
    snapshot_only(folder)
    return folder, config_of("run-1")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RunFailed("the loss became nan"), ExitCode.FAILED),
        (RunStopped("asked to stop"), ExitCode.STOPPED),
        (OSError(errno.ENOSPC, "No space left on device"), ExitCode.DISK_FULL),
        (RuntimeError("CUDA out of memory"), ExitCode.OUT_OF_MEMORY),
    ],
)
def test_a_process_says_by_its_status_why_it_ends(
    error: Exception, status: int, training: tuple[Path, RunConfig]
) -> None:
    folder, config = training
    assert run_to_exit_code(folder, config, raising(error)) == status
    assert (folder / FAILURE_REASON).exists() == (status == ExitCode.FAILED)


def test_an_error_that_nobody_expected_is_raised_with_its_trace(training: tuple[Path, RunConfig]) -> None:
    folder, config = training
    with pytest.raises(ZeroDivisionError):
        run_to_exit_code(folder, config, raising(ZeroDivisionError()))
    assert not (folder / FAILURE_REASON).exists()


def test_memory_that_does_not_suffice_for_one_row_or_in_the_gate_is_for_a_person(
    training: tuple[Path, RunConfig],
) -> None:
    folder, config = training
    ends = [run_to_exit_code(folder, config, raising(MemoryError())) for _ in range(4)]
    assert ends == [ExitCode.OUT_OF_MEMORY, ExitCode.OUT_OF_MEMORY, ExitCode.OUT_OF_MEMORY, ExitCode.FAILED]
    assert "one row at a time" in (folder / FAILURE_REASON).read_text()
    (folder / "adapter").mkdir()
    assert run_to_exit_code(folder, config, raising(MemoryError())) == ExitCode.FAILED
    assert "LOOPWRIGHT_TRAINER_MAX_TOKENS" in (folder / FAILURE_REASON).read_text()


def test_a_reason_that_the_full_disk_does_not_take_is_not_lost_for_an_unknown_error(
    training: tuple[Path, RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, config = training

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("services.trainer.worker.bootstrap.write_whole", full)
    assert run_to_exit_code(folder, config, raising(RunFailed("the loss became nan"))) == ExitCode.DISK_FULL


def test_only_the_newest_failed_run_keeps_its_checkpoints(rig: TrainerRig) -> None:
    def child(folder: Path) -> int:
        checkpoint(folder, 2)
        write_whole(folder / FAILURE_REASON, b"loss is nan")
        return ExitCode.FAILED

    rig.process = child
    trainer = rig.trainer()
    for number in (1, 2):
        send(rig, corrections(number))
        run_steps(trainer)
    assert [run.stage for run in run_table.all_runs(trainer.db)] == ["failed", "failed"]
    assert [(folder / CHECKPOINTS).exists() for folder in dict.fromkeys(rig.started)] == [False, True]
