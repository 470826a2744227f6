"""Several processes that train one run: how many, what each of them computes, and what follows from their ends."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer import __main__ as entry_point
from services.trainer.core.hardware import (
    DeviceChoice,
    DeviceKind,
    Hardware,
    process_count,
    spreads_over_gpus,
)
from services.trainer.files import write_whole
from services.trainer.run import resolved, run_table
from services.trainer.run.folder import ADAPTER, CONTROL, ENVIRONMENTS, ExitCode
from services.trainer.run.position import GATE, position_of
from services.trainer.settings import TrainerSettings
from services.trainer.training.job import TrainingJob
from services.trainer.training.process_group import ALONE, ProcessGroup, is_peer_lost
from services.trainer.training.rows import AnsweredPrompt, TokenizedRow
from services.trainer.training.step_dataset import StepDataset
from services.trainer.worker import join, launcher
from services.trainer.worker.launcher import OtherWorldSize
from services.trainer.worker.restart_policy import MAX_ERRORS, MAX_KILLS
from services.trainer.worker.training_group import End, cause_of_end, without_other_machines
from shared.errors import Misconfigured
from tests.trainer_factories import TrainerRig, finish_run, run_steps
from tests.trainer_rows import resolved_recipe
from tests.unit.test_trainer_service import corrections, send, trained
from tests.unit.test_trainer_step_plan import row, rows_of
from tests.unit.test_trainer_supervisor import progress, snapshot_only, write_checkpoint
from tests.unit.test_trainer_way_forward import results, train

KILLED = -signal.SIGKILL
SIZES = st.lists(st.integers(1, 60), max_size=6)


# --- how many -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("processes", "device", "gpus", "expected"),
    [
        (1, "auto", 8, 1),
        (1, "cpu", 8, 1),
        (2, "cpu", 8, 2),
        (2, "auto", 0, 2),
        (4, "auto", 8, 4),
        (2, "3,5", 8, 2),
        ("auto", "auto", 0, 1),
        ("auto", "cpu", 8, 1),
        ("auto", "auto", 8, 8),
        ("auto", "cuda", 8, 8),
        ("auto", "cuda:3", 8, 1),
        ("auto", "3,5,1", 8, 3),
    ],
)
def test_each_process_has_a_gpu_or_all_share_the_cpu(
    processes: Any, device: str, gpus: int, expected: int
) -> None:
    assert process_count(processes, DeviceChoice.parse(device), gpus) == expected


@pytest.mark.parametrize(
    ("device", "gpus", "found"), [("auto", 2, "only 2 GPUs"), ("cuda:1", 8, "only 1 GPU ")]
)
def test_more_processes_than_gpus_are_refused(device: str, gpus: int, found: str) -> None:
    with pytest.raises(Misconfigured, match=f"LOOPWRIGHT_TRAINER_PROCESSES=4, but .*{found}"):
        process_count(4, DeviceChoice.parse(device), gpus)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"nnodes": 2}, "requires LOOPWRIGHT_TRAINER_RDZV_ENDPOINT=host:port"),
        ({"nnodes": 2, "rdzv_endpoint": "trainer-0"}, "requires LOOPWRIGHT_TRAINER_RDZV_ENDPOINT=host:port"),
        ({"nnodes": 2, "rdzv_endpoint": "a:1", "node_rank": 2}, "NODE_RANK=2 must be less than"),
        ({"node_rank": 1}, "NODE_RANK=1 must be less than"),
        ({"processes": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        TrainerSettings(**settings)


def test_world_size_counts_the_processes_of_all_machines() -> None:
    settings = TrainerSettings(nnodes=3, processes=4, rdzv_endpoint="trainer-0:29500")
    assert settings.world_size == 12


def test_trainer_runs_on_machine_0_and_join_on_the_others() -> None:
    settings = {"nnodes": 2, "rdzv_endpoint": "trainer-0:29500"}
    with pytest.raises(Misconfigured, match="the trainer runs on machine 0"):
        entry_point.run(TrainerSettings(**settings, node_rank=1))  # type: ignore[arg-type]
    with pytest.raises(Misconfigured, match="NODE_RANK=0 is the machine of the trainer"):
        join.run(TrainerSettings(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("weights", "kind", "count", "spread"),
    [
        (60, "cuda", 1, False),
        (60, "cuda", 2, False),
        (80, "cuda", 1, False),
        (80, "cuda", 2, True),
        (80, "cpu", 1, False),
    ],
)
def test_model_that_fits_no_gpu_is_spread_for_evaluation(
    weights: int, kind: DeviceKind, count: int, spread: bool
) -> None:
    hardware = Hardware(kind=kind, name="X", memory_bytes=100, free_bytes=90, count=count)
    assert spreads_over_gpus(weights, hardware) is spread


# --- what each computes -------------------------------------------------------------------------------------------


def dataset_of(
    step: list[TokenizedRow], group: ProcessGroup, known: bool, *, equal_passes: bool = False
) -> StepDataset:
    class Anything(dict[AnsweredPrompt, float]):
        def __missing__(self, _: AnsweredPrompt) -> float:
            return 0.0

    references = Anything() if known else None
    return StepDataset([tuple(step)], 60, references=references, group=group, equal_passes=equal_passes)


def step_of(
    sft: list[int], replay: list[int], liked: list[int], disliked: list[int], dpo: list[int]
) -> list[TokenizedRow]:
    """Return rows of these sizes, and one more SFT row, so that no step is empty."""
    base = [row(f"r{i}", "replay", size + 1) for i, size in enumerate(replay)]
    return [*rows_of(sft, liked, disliked, dpo), *base, row("last", size=3)]


@given(SIZES, SIZES, SIZES, SIZES, SIZES, st.integers(1, 5), st.booleans())
def test_processes_compute_every_row_once_in_equally_many_micro_batches(
    sft: list[int],
    replay: list[int],
    liked: list[int],
    disliked: list[int],
    dpo: list[int],
    processes: int,
    known: bool,
) -> None:
    step = step_of(sft, replay, liked, disliked, dpo)
    shares = [dataset_of(step, ProcessGroup(rank, processes), known)[0] for rank in range(processes)]
    (whole,) = {(share.totals, share.mismatched, share.tokens, tuple(share.metrics)) for share in shares}
    alone = dataset_of(step, ALONE, known)[0]
    assert whole == (alone.totals, alone.mismatched, alone.tokens, tuple(alone.metrics))
    (count,) = {len(share.micro_batches) for share in shares}
    assert count >= 1, "a process without a forward pass would not average gradients"
    batches = [batch for share in shares for batch in share.micro_batches]
    assert Counter(
        answers=sum(batch.answers for batch in batches),
        replay=sum(batch.replay.sequences for batch in batches if batch.replay is not None),
        kto=sum(batch.judgements for batch in batches),
        dpo=sum(batch.pairs for batch in batches),
    ) == Counter(
        answers=len(sft) + 1 + len(replay), replay=len(replay), kto=len(liked) + len(disliked), dpo=len(dpo)
    )
    for batch in batches:
        assert batch.is_filler == (not batch.answers + batch.judgements + batch.pairs)
        assert batch.packed.sequences == batch.answers + batch.judgements + 2 * batch.pairs + batch.is_filler


@given(SIZES, SIZES, SIZES, SIZES, SIZES, st.integers(1, 5), st.booleans())
def test_processes_that_divide_the_base_run_it_equally_often(
    sft: list[int],
    replay: list[int],
    liked: list[int],
    disliked: list[int],
    dpo: list[int],
    processes: int,
    known: bool,
) -> None:
    step = step_of(sft, replay, liked, disliked, dpo)
    shares = [
        dataset_of(step, ProcessGroup(rank, processes), known, equal_passes=True)[0]
        for rank in range(processes)
    ]
    passes = {
        tuple(
            (
                (batch.judged or batch.judged_filler) is not None,
                (batch.mismatched or batch.mismatched_filler) is not None,
                (batch.replay or batch.replay_filler) is not None,
            )
            for batch in share.micro_batches
        )
        for share in shares
    }
    assert len(passes) == 1
    plain = [dataset_of(step, ProcessGroup(rank, processes), known)[0] for rank in range(processes)]
    assert all(not batch.judged_filler for share in plain for batch in share.micro_batches)
    judged = bool(liked or disliked or dpo) and not known
    (found,) = passes
    assert any(one for one, _, _ in found) == judged
    assert any(one for _, _, one in found) == bool(replay)


@given(SIZES, SIZES, SIZES, st.integers(1, 3))
def test_job_is_the_same_in_every_process(
    sft: list[int], liked: list[int], dpo: list[int], epochs: int
) -> None:
    rows = rows_of(sft, liked, [], dpo)
    recipe = resolved_recipe(rank=4)
    job = TrainingJob("base", "ab" * 32, "float32", 2, recipe, [tuple(rows)] * epochs, rows[:2])
    assert TrainingJob.from_json(job.to_json()) == job


def test_process_that_trains_alone_agrees_with_itself(tmp_path: Path) -> None:
    assert ALONE.any(True, False) == (True, False)
    assert ALONE.share(b"job") == b"job"
    assert [ALONE.decide(flag) for flag in (True, False)] == [True, False]
    assert ALONE.sum([1.5, -2.0]) == [1.5, -2.0]
    assert ALONE.share_folder(tmp_path, tmp_path / "scratch") == tmp_path
    assert ALONE.share_folder(None, tmp_path / "scratch") is None


# --- how they end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ends", "cause"),
    [
        ([(1, 5)], 1),
        ([(KILLED, 5), (ExitCode.PEER_LOST, 5)], KILLED),
        ([(ExitCode.PEER_LOST, 5), (KILLED, 6)], KILLED),
        ([(1, 5), (-signal.SIGTERM, 6)], 1),
        ([(1, 5), (KILLED, 35)], 1),
        ([(KILLED, 5), (1, 5)], KILLED),
        ([(KILLED, 5), (-signal.SIGTERM, 5)], KILLED),
        ([(ExitCode.PEER_LOST, 6), (-signal.SIGTERM, 5)], ExitCode.PEER_LOST),
        ([(-signal.SIGTERM, 5)], -signal.SIGTERM),
        ([(ExitCode.PEER_LOST, 5), (1, 6)], 1),
        ([(ExitCode.PEER_LOST, 5), (ExitCode.PEER_LOST, 5)], ExitCode.PEER_LOST),
        ([(ExitCode.OUT_OF_MEMORY, 7), (1, 5)], ExitCode.OUT_OF_MEMORY),
        ([(ExitCode.STOPPED, 5), (ExitCode.OUT_OF_MEMORY, 6)], ExitCode.OUT_OF_MEMORY),
        ([(ExitCode.STOPPED, 5), (ExitCode.FAILED, 6)], ExitCode.FAILED),
        ([(ExitCode.STOPPED, 5), (ExitCode.STOPPED, 6)], ExitCode.STOPPED),
    ],
)
def test_end_of_the_run_is_that_of_the_process_that_caused_it(
    ends: list[tuple[int, int]], cause: int
) -> None:
    assert cause_of_end([End(*end) for end in ends]) == cause
    assert cause_of_end([End(*end) for end in reversed(ends)]) == cause


def test_lost_connection_within_one_machine_counts_as_an_error() -> None:
    """Otherwise a machine whose processes cannot reach each other would be tried without a limit."""
    assert without_other_machines(ExitCode.PEER_LOST) == 1
    for code in (KILLED, 1, *(code for code in ExitCode if code != ExitCode.PEER_LOST)):
        assert without_other_machines(code) == code


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[/pytorch/gloo/transport/tcp/pair.cc:534] Connection closed by peer"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("Connection closed by peer"), False),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
    ],
)
def test_lost_connection_is_not_taken_for_another_error(error: Exception, expected: bool) -> None:
    assert is_peer_lost(error) is expected


def test_lost_machine_is_waited_for_and_never_fails_the_run(tmp_path: Path) -> None:
    ends = iter([ExitCode.PEER_LOST] * (MAX_KILLS + MAX_ERRORS))
    reasons = []

    def process(folder: Path) -> int:
        snapshot_only(folder)
        reasons.append(progress(rig).get("reason"))
        return next(ends, None) or finish_run(folder)

    rig = TrainerRig(tmp_path, process)
    send(rig, corrections())
    trainer = rig.trainer()
    for _ in range(2 * (MAX_KILLS + MAX_ERRORS)):
        run_steps(trainer, 2)
        rig.clock.advance(60)
    assert [run.stage for run in run_table.all_runs(trainer.db)] == ["published"]
    assert "another machine ended" in str(reasons[-1])


def test_parts_of_a_run_follow_each_other(tmp_path: Path) -> None:
    """With several processes they are the snapshot, training, and the gate; each is a process of its own."""
    positions = []

    def process(folder: Path) -> int:
        positions.append(position_of(folder))
        if len(positions) == 1:
            snapshot_only(folder)
        elif len(positions) == 2:
            (folder / ADAPTER).mkdir()
        else:
            finish_run(folder)
        return ExitCode.DONE

    rig = TrainerRig(tmp_path, process)
    send(rig, corrections())
    run_steps(rig.trainer())
    assert positions == ["snapshot", "training, step 0", GATE]
    assert len(trained(rig)) == 1


# --- another number of processes ----------------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, dict[str, str]]]:
    """Return what `start_run` starts: modules, numbers of GPUs, and settings."""
    calls: list[tuple[str, int, dict[str, str]]] = []

    def start(module: str, folder: Path, log: Path, device: str, gpus: int, settings: dict[str, str]) -> None:
        calls.append((module.rpartition(".")[2], gpus, settings))

    monkeypatch.setattr(launcher, "_start", start)
    return calls


def trained_by(folder: Path, processes: int, step: int = 0) -> None:
    """Leave the folder as it is when this number of processes has trained some steps."""
    snapshot_only(folder)
    write_whole(folder / ENVIRONMENTS, b"[]")
    resolved.write(folder, resolved_recipe().model_copy(update={"processes": processes}))
    if step:
        write_checkpoint(folder, step)


def test_agent_is_started_for_training_only(tmp_path: Path, started: list[Any]) -> None:
    settings = {"LOOPWRIGHT_TRAINER_PROCESSES": "2"}
    launcher.start_run(tmp_path, "cpu", 2)
    trained_by(tmp_path, 2)
    launcher.start_run(tmp_path, "cpu", 2)
    write_checkpoint(tmp_path, 4)
    launcher.start_run(tmp_path, "cpu", 1, nodes=2)
    (tmp_path / ADAPTER).mkdir()
    launcher.start_run(tmp_path, "cpu", 2)
    assert started == [
        ("pipeline", 2, settings),
        ("training_group", 2, settings),
        ("training_group", 1, {"LOOPWRIGHT_TRAINER_PROCESSES": "1"}),
        ("pipeline", 2, settings),
    ]


def test_agent_trains_a_control_in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []

    def start(module: str, folder: Path, log: Path, device: str, gpus: int, settings: dict[str, str]) -> None:
        folders.append(folder)

    monkeypatch.setattr(launcher, "_start", start)
    trained_by(tmp_path, 2)
    (tmp_path / ADAPTER).mkdir()
    (tmp_path / CONTROL).mkdir()
    trained_by(tmp_path / CONTROL, 2, step=2)
    launcher.start_run(tmp_path, "cpu", 2)
    with pytest.raises(OtherWorldSize):
        launcher.start_run(tmp_path, "cpu", 1)
    (tmp_path / CONTROL / ADAPTER).mkdir()
    launcher.start_run(tmp_path, "cpu", 1)
    assert folders == [tmp_path / CONTROL, tmp_path]


@pytest.mark.parametrize(("before", "now", "nodes"), [(2, 1, 1), (1, 2, 1), (2, 2, 2)])
def test_checkpoint_is_refused_by_another_number_of_processes(
    tmp_path: Path, started: list[Any], before: int, now: int, nodes: int
) -> None:
    trained_by(tmp_path, before, step=6)
    with pytest.raises(OtherWorldSize, match=f"6 steps with {before} process") as refused:
        launcher.start_run(tmp_path, "cpu", now, nodes)
    assert "LOOPWRIGHT_TRAINER_PROCESSES" in str(refused.value)
    assert "train now --again" in str(refused.value)
    assert started == []


def test_run_without_a_checkpoint_takes_the_new_number(tmp_path: Path, started: list[Any]) -> None:
    trained_by(tmp_path, 1)
    launcher.start_run(tmp_path, "cpu", 2)
    assert [module for module, *_ in started] == ["training_group"]


def blocked_rig(tmp_path: Path, allowed: Callable[[], bool]) -> TrainerRig:
    """Return a rig whose first run has a checkpoint of two processes, which may not go on unless `allowed`."""

    def process(folder: Path) -> int:
        if folder == rig.started[0] and not allowed():
            trained_by(folder, 2, step=0 if (folder / "checkpoints").exists() else 6)
            launcher.require_same_processes(folder, 1)
        return finish_run(folder)

    rig = TrainerRig(tmp_path, process)
    send(rig, corrections())
    return rig


def test_run_waits_for_its_number_of_processes(tmp_path: Path) -> None:
    set_back = False
    rig = blocked_rig(tmp_path, lambda: set_back)
    trainer = rig.trainer()
    for _ in range(2 * MAX_KILLS):
        run_steps(trainer, 2)
        rig.clock.advance(60)
    assert "with 2 process(es), and the settings now give 1" in str(progress(rig)["reason"])
    train(rig, "c1")
    run_steps(trainer)
    assert results(rig)["c1"].status == "refused"
    assert len(run_table.all_runs(trainer.db)) == 1
    set_back = True
    rig.clock.advance(60)
    run_steps(trainer)
    assert [run.stage for run in run_table.all_runs(trainer.db)] == ["published"]


def test_train_again_replaces_a_run_that_waits(tmp_path: Path) -> None:
    rig = blocked_rig(tmp_path, lambda: False)
    trainer = rig.trainer()
    run_steps(trainer)
    train(rig, "c1", again=True)
    run_steps(trainer)
    assert [run.stage for run in run_table.all_runs(trainer.db)] == ["failed", "published"]
    assert results(rig)["c1"].status == "done"
