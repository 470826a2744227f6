"""How the trainer handles the end of a run's process. Processes are simulated; the log is in memory."""

from __future__ import annotations

import errno
import json
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.trainer.dataset import snapshot_files
from services.trainer.files import write_whole
from services.trainer.run import eval_batch, micro_batch, run_table
from services.trainer.run.checkpoint_manifest import write_manifest
from services.trainer.run.context import RunFailed, RunStopped
from services.trainer.run.folder import (
    ADAPTER,
    CHECKPOINTS,
    CONTROL,
    ENVIRONMENTS,
    FAILURE_REASON,
    GATE_RESULT,
    ExitCode,
)
from services.trainer.run.position import BASE_ANSWERS, GATE, position_of
from services.trainer.run.run_table import RunConfig
from services.trainer.worker.pipeline import run_to_exit_code
from services.trainer.worker.restart_policy import MAX_ERRORS, MAX_KILLS, MAX_STARVED
from shared.adapters import redis_keys
from shared.errors import Misconfigured
from tests.trainer_factories import LINE, TrainerRig, finish_run, run_steps
from tests.unit.test_trainer_publish import run as config_of
from tests.unit.test_trainer_service import corrections, send, trained

KILLED = -signal.SIGKILL


def progress(rig: TrainerRig) -> dict[str, object]:
    """Return the run's progress as the console sees it."""
    record: dict[str, object] = json.loads(rig.cache.get(redis_keys.run_progress(LINE)) or b"{}")
    return record


ROW = 100
"""Tokens of the longest row of a run."""


def snapshot_only(folder: Path) -> None:
    """Leave the folder as it is when the snapshot is complete and training begins."""
    if not snapshot_files.is_complete(folder):
        finish_run(folder)
        (folder / GATE_RESULT).unlink()
        (folder / ADAPTER).rmdir()
        micro_batch.start(folder, 8 * ROW, ROW)
        write_whole(folder / ENVIRONMENTS, b"[]")


def micro_batch_tokens(folder: Path) -> int:
    """Return the run's micro-batch size."""
    size = micro_batch.read(folder)
    assert size is not None
    return size.tokens


def trained_only(folder: Path) -> None:
    """Leave the folder as it is when training is complete."""
    snapshot_only(folder)
    (folder / ADAPTER).mkdir(exist_ok=True)


def write_checkpoint(folder: Path, step: int) -> None:
    checkpoint = folder / CHECKPOINTS / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    write_manifest(checkpoint, step)


def run_to_the_end(
    rig: TrainerRig, ends: Iterator[int], *, before: Callable[[Path], None] = snapshot_only
) -> list[str]:
    """Run until no process is started any more, and return the stages of all runs.

    Each process calls `before` and ends with the next of `ends`; after the last one, processes succeed.
    """

    def process(folder: Path) -> int:
        before(folder)
        status = next(ends, None)
        return finish_run(folder) if status is None else status

    rig.process = process
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


def test_third_kill_at_one_position_halves_the_micro_batch(rig: TrainerRig) -> None:
    assert run_to_the_end(rig, iter([KILLED] * 2)) == ["published"]
    assert micro_batch.reduction_note(rig.started[0]) is None
    other = TrainerRig(rig.folder / "other", finish_run)
    reasons: list[object] = []

    def note_reason(folder: Path) -> None:
        snapshot_only(folder)
        reasons.append(progress(other).get("reason"))

    assert run_to_the_end(other, iter([KILLED] * 3), before=note_reason) == ["published"]
    assert micro_batch_tokens(other.started[0]) == 4 * ROW
    assert reasons[-1] == (
        "memory did not suffice for 800 tokens at once: each step uses micro-batches of 400 tokens"
    )


def test_kill_counted_by_the_kernel_halves_the_micro_batch_at_once(
    rig: TrainerRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = rig.folder / "memory.events"
    monkeypatch.setattr(micro_batch, "OOM_KILL_COUNTERS", (counter,))

    def count_oom_kill(folder: Path) -> None:
        snapshot_only(folder)
        counter.write_text(f"oom_kill {len(rig.started)}")

    counter.write_text("oom_kill 0")
    assert run_to_the_end(rig, iter([KILLED]), before=count_oom_kill) == ["published"]
    assert micro_batch_tokens(rig.started[0]) == 4 * ROW


def test_kills_with_progress_in_between_keep_the_micro_batch(rig: TrainerRig) -> None:
    steps = iter(range(1, 100))

    def make_progress(folder: Path) -> None:
        snapshot_only(folder)
        write_checkpoint(folder, next(steps))

    assert run_to_the_end(rig, iter([KILLED] * 2 * MAX_KILLS), before=make_progress) == ["published"]
    assert len(rig.started) == 2 * MAX_KILLS + 1
    assert micro_batch.reduction_note(rig.started[0]) is None


def test_run_that_keeps_being_killed_fails_and_frees_the_line(rig: TrainerRig) -> None:
    assert run_to_the_end(rig, iter([KILLED] * MAX_KILLS)) == ["failed"]
    assert len(rig.started) == MAX_KILLS
    assert micro_batch_tokens(rig.started[0]) == ROW
    assert "killed 12 times" in str(progress(rig)["reason"])
    send(rig, corrections(2))
    rig.process = finish_run
    trainer = rig.trainer()
    run_steps(trainer)
    assert [run.stage for run in run_table.all_runs(trainer.db)] == ["failed", "published"]
    assert [version.run_id for version in trained(rig)] == [rig.started[-1].name]


def test_kills_together_with_the_service_count_too(rig: TrainerRig) -> None:
    """As when a container is killed for memory with everything in it, so no exit code is read."""

    def process(folder: Path) -> None:
        snapshot_only(folder)

    rig.process = process
    send(rig, corrections())

    def kill_service(times: int) -> None:
        for _ in range(times):
            trainer = rig.trainer()
            run_steps(trainer, 3)
            rig.clock.advance(60)
            run_steps(trainer, 2)

    kill_service(4)
    assert micro_batch_tokens(rig.started[0]) == 4 * ROW
    kill_service(MAX_KILLS)
    assert [run.stage for run in run_table.all_runs(rig.trainer().db)] == ["failed"]


def test_stops_of_the_service_do_not_count(rig: TrainerRig) -> None:
    def process(folder: Path) -> None:
        snapshot_only(folder)

    rig.process = process
    send(rig, corrections())
    for _ in range(2 * MAX_KILLS):
        trainer = rig.trainer()
        run_steps(trainer, 3)
        trainer.supervisor.stop()
    assert {folder.name for folder in rig.started} == {rig.started[0].name}
    assert [run.stage for run in run_table.all_runs(rig.trainer().db)] == ["snapshot"]
    assert micro_batch.reduction_note(rig.started[0]) is None


# --- the gate's own process ---


def test_gate_runs_in_a_process_of_its_own(rig: TrainerRig) -> None:
    found: list[bool] = []

    def process(folder: Path) -> int:
        found.append((folder / ADAPTER).exists())
        if not found[-1]:
            trained_only(folder)
            return ExitCode.DONE
        return finish_run(folder)

    rig.process = process
    send(rig, corrections())
    trainer = rig.trainer()
    run_steps(trainer)
    assert found == [False, True], "the process that trained has ended, and another one gates"
    assert [(run.stage, run.failures) for run in run_table.all_runs(trainer.db)] == [("published", 0)]
    assert rig.clock.now_ms() == TrainerRig(rig.folder, finish_run).clock.now_ms(), "it starts at once"


def control_only(folder: Path) -> None:
    """Leave the folder as it is when the gate needs a control, whose training begins."""
    trained_only(folder)
    if not snapshot_files.is_complete(folder / CONTROL):
        (folder / CONTROL).mkdir(exist_ok=True)
        snapshot_only(folder / CONTROL)


def test_control_is_trained_between_two_processes_of_the_gate(rig: TrainerRig) -> None:
    found: list[str] = []

    def process(folder: Path) -> int:
        found.append(position_of(folder))
        match len(found):
            case 1:
                trained_only(folder)
            case 2:
                control_only(folder)
                (folder / CONTROL / ENVIRONMENTS).unlink()
            case 3:
                write_whole(folder / CONTROL / ENVIRONMENTS, b"[]")
            case 4:
                (folder / CONTROL / ADAPTER).mkdir()
            case _:
                return finish_run(folder)
        return ExitCode.DONE

    rig.process = process
    send(rig, corrections())
    trainer = rig.trainer()
    run_steps(trainer, 12)
    assert found == [
        "snapshot",
        "gate",
        "control: base answers",
        "control: training, step 0",
        "gate with control",
    ]
    assert [(run.stage, run.failures) for run in run_table.all_runs(trainer.db)] == [("published", 0)]


def test_kills_of_a_control_halve_its_own_micro_batch(rig: TrainerRig) -> None:
    assert run_to_the_end(rig, iter([KILLED] * 3), before=control_only) == ["published"]
    folder = rig.started[0]
    assert (micro_batch_tokens(folder / CONTROL), micro_batch_tokens(folder)) == (4 * ROW, 8 * ROW)


def test_reason_why_a_control_failed_ends_the_run(rig: TrainerRig) -> None:
    def fail(folder: Path) -> None:
        control_only(folder)
        write_whole(folder / CONTROL / FAILURE_REASON, b"the loss became NaN")

    assert run_to_the_end(rig, iter([int(ExitCode.FAILED)]), before=fail) == ["failed"]
    assert "the loss became NaN" in str(progress(rig)["reason"])


def test_process_that_ends_well_without_a_result_counts_as_an_error(rig: TrainerRig) -> None:
    def process(folder: Path) -> int:
        trained_only(folder)
        return ExitCode.DONE

    rig.process = process
    send(rig, corrections())
    trainer = rig.trainer()
    for _ in range(10):
        run_steps(trainer, 3)
        rig.clock.advance(60)
    assert [run.stage for run in run_table.all_runs(trainer.db)] == ["failed"]
    assert len(rig.started) == 1 + MAX_ERRORS


@pytest.mark.parametrize("end", [KILLED, ExitCode.OUT_OF_MEMORY, ExitCode.MEMORY_EXHAUSTED, 1])
def test_early_ends_of_the_gate_never_train_again(rig: TrainerRig, end: int) -> None:
    assert run_to_the_end(rig, iter([end, end]), before=trained_only) == ["published"]
    assert micro_batch.reduction_note(rig.started[0]) is None


def test_kill_for_memory_at_the_gate_halves_the_rows_evaluated_at_once(
    rig: TrainerRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = rig.folder / "memory.events"
    monkeypatch.setattr(micro_batch, "OOM_KILL_COUNTERS", (counter,))

    def count_oom_kill(folder: Path) -> None:
        trained_only(folder)
        counter.write_text(f"oom_kill {len(rig.started)}")

    counter.write_text("oom_kill 0")
    assert run_to_the_end(rig, iter([KILLED, KILLED]), before=count_oom_kill) == ["published"]
    assert eval_batch.sizes(rig.started[0]) == (16, 2)
    assert micro_batch_tokens(rig.started[0]) == 8 * ROW


def test_starved_gate_waits_and_then_fails_with_a_remedy(rig: TrainerRig) -> None:
    ends = iter([int(ExitCode.MEMORY_EXHAUSTED)] * MAX_STARVED)
    assert run_to_the_end(rig, ends, before=trained_only) == ["failed"]
    assert len(rig.started) == MAX_STARVED
    assert "even with the smallest batches" in str(progress(rig)["reason"])
    assert (rig.started[0] / ADAPTER).exists()


def test_missing_gpu_keeps_the_run_waiting(rig: TrainerRig) -> None:
    missing = True

    def process(folder: Path) -> int:
        if missing:
            raise Misconfigured("LOOPWRIGHT_TRAINER_DEVICE asks for a GPU, but no NVIDIA GPU is visible here")
        return finish_run(folder)

    rig.process = process
    send(rig, corrections())
    trainer = rig.trainer()
    for _ in range(2 * MAX_KILLS):
        run_steps(trainer, 2)
        rig.clock.advance(60)
    assert [run.stage for run in run_table.all_runs(trainer.db)] == ["begun"]
    assert "no NVIDIA GPU is visible" in str(progress(rig)["reason"])
    missing = False
    run_steps(trainer, 8)
    assert [run.stage for run in run_table.all_runs(trainer.db)] == ["published"]


# --- disks ---


def test_full_disk_is_reported_and_never_ends_the_run(rig: TrainerRig) -> None:
    reasons = []

    def process(folder: Path) -> int:
        reasons.append(str(progress(rig).get("reason", "")))
        return ExitCode.DISK_FULL if len(reasons) <= MAX_KILLS + 8 else finish_run(folder)

    rig.process = process
    send(rig, corrections())
    trainer = rig.trainer()
    for _ in range(MAX_KILLS + 12):
        run_steps(trainer, 3)
        rig.clock.advance(60)
    assert [run.stage for run in run_table.all_runs(trainer.db)] == ["published"]
    assert len(trained(rig)) == 1
    assert "Free some space there; the run resumes automatically" in reasons[-1]


def test_waits_on_a_full_disk_grow(rig: TrainerRig) -> None:
    rig.process = lambda folder: ExitCode.DISK_FULL
    send(rig, corrections())
    trainer = rig.trainer()
    started = []
    for _ in range(40):
        run_steps(trainer, 3)
        started.append(len(rig.started))
        rig.clock.advance(1)
    assert 4 <= started[-1] <= 8


def test_full_disk_under_the_database_loses_no_record(rig: TrainerRig) -> None:
    """The service reports it, tries again, and reads nothing more meanwhile."""
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


def test_other_database_errors_end_the_service(rig: TrainerRig) -> None:
    trainer = rig.trainer()
    send(rig, corrections())
    trainer.db.execute("DROP TABLE batches")
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        trainer.run_once()


# --- exit codes of the process ---


def raising(error: BaseException) -> Callable[[], None]:
    """Return a function that raises `error`."""

    def work() -> None:
        raise error

    return work


@pytest.fixture
def training(tmp_path: Path) -> tuple[Path, RunConfig]:
    """Return the folder and configuration of a run that is about to train."""
    folder = tmp_path / "runs" / "run-1"
    folder.mkdir(parents=True)
    snapshot_only(folder)
    (folder / ENVIRONMENTS).unlink()
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
def test_exit_code_says_why_the_process_ended(
    error: Exception, status: int, training: tuple[Path, RunConfig]
) -> None:
    folder, _ = training
    assert run_to_exit_code(folder, raising(error)) == status
    assert (folder / FAILURE_REASON).exists() == (status == ExitCode.FAILED)


def test_unexpected_error_is_raised(training: tuple[Path, RunConfig]) -> None:
    folder, _ = training
    with pytest.raises(ZeroDivisionError):
        run_to_exit_code(folder, raising(ZeroDivisionError()))
    assert not (folder / FAILURE_REASON).exists()


def test_out_of_memory_in_training_halves_the_micro_batch_down_to_one(
    training: tuple[Path, RunConfig],
) -> None:
    folder, _ = training
    micro_batch.start(folder, 8 * ROW, ROW)
    write_whole(folder / ENVIRONMENTS, b"[]")
    ends = [run_to_exit_code(folder, raising(MemoryError())) for _ in range(4)]
    assert ends == [ExitCode.OUT_OF_MEMORY] * 3 + [ExitCode.MEMORY_EXHAUSTED]
    assert micro_batch_tokens(folder) == ROW
    assert eval_batch.reduction_note(folder) is None


@pytest.mark.parametrize("position", [BASE_ANSWERS, GATE])
def test_out_of_memory_where_a_run_evaluates_halves_those_batches(
    position: str, training: tuple[Path, RunConfig]
) -> None:
    folder, _ = training
    if position == GATE:
        (folder / ADAPTER).mkdir()
    sizes = []
    while run_to_exit_code(folder, raising(MemoryError())) == ExitCode.OUT_OF_MEMORY:
        sizes.append(eval_batch.sizes(folder))
    assert sizes == [(32, 4), (16, 2), (8, 1), (4, 1), (2, 1), (1, 1)]
    assert run_to_exit_code(folder, raising(MemoryError())) == ExitCode.MEMORY_EXHAUSTED
    assert not (folder / FAILURE_REASON).exists()
    assert micro_batch.reduction_note(folder) is None


def test_failure_on_a_full_disk_is_reported_as_a_full_disk(
    training: tuple[Path, RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = training

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("services.trainer.worker.bootstrap.write_whole", full)
    assert run_to_exit_code(folder, raising(RunFailed("the loss became nan"))) == ExitCode.DISK_FULL


def test_only_the_newest_failed_run_keeps_its_checkpoints(rig: TrainerRig) -> None:
    def process(folder: Path) -> int:
        write_checkpoint(folder, 2)
        write_whole(folder / FAILURE_REASON, b"loss is nan")
        return ExitCode.FAILED

    rig.process = process
    trainer = rig.trainer()
    for number in (1, 2):
        send(rig, corrections(number))
        run_steps(trainer)
    assert [run.stage for run in run_table.all_runs(trainer.db)] == ["failed", "failed"]
    assert [(folder / CHECKPOINTS).exists() for folder in dict.fromkeys(rig.started)] == [False, True]
