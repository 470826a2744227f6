"""Several processes train one run: the same losses as one process, and the same end after any kill.

Real processes on the CPU, connected by gloo, started by `accelerate launch` as the service starts them.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tensorboardX.proto.event_pb2 import Event

from deploy.local.ports import choose_ports
from services.trainer.run import micro_batch, resolved
from services.trainer.run.folder import MICRO_BATCH, TENSORBOARD, ExitCode
from services.trainer.run.position import GATE, TRAINING, position_of
from services.trainer.training.rows import tokenize
from tests.fault.trainer_phases import is_alive
from tests.integration.service_process import ROOT
from tests.trainer_fixture import wait_until
from tests.trainer_processes import START_S, ProcessesRun, mixed_rows, ranks_of
from tests.trainer_rows import cached_chat

pytestmark = pytest.mark.timeout(1800)
FAULT = """
import os
if os.environ.get("RANK") == "1":
    from services.trainer.training.trainer import StepTrainer
    healthy = StepTrainer.training_step
    def training_step(self, *arguments, **options):
        if self.state.global_step == 2:
            raise {error}
        return healthy(self, *arguments, **options)
    StepTrainer.training_step = training_step
"""
"""A `sitecustomize` with which the third step fails in rank 1."""


def curves(run: ProcessesRun) -> dict[str, dict[int, float]]:
    """Return the values of each curve by step; those of a resumed process replace earlier ones."""
    found: dict[str, dict[int, float]] = {}
    for file in sorted((run.folder / TENSORBOARD).glob("*tfevents*")):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            for value in event.summary.value:
                if not value.tag.startswith("speed/"):
                    found.setdefault(value.tag, {})[event.step] = value.simple_value
            content = content[16 + length :]
    return found


@pytest.fixture(scope="module")
def environment(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Set the environment of a trainer, without Redis. Returns the folder of runs."""
    data = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOOPWRIGHT_DATA_DIR", str(data))
        patch.setenv("LOOPWRIGHT_BASE_MODEL", str(tiny_model))
        patch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
        yield data / "trainer" / "assistant" / "runs"


@pytest.fixture(scope="module")
def prepared(environment: Path, tiny_model: Path) -> ProcessesRun:
    """Return a run of two processes whose training is prepared."""
    run = ProcessesRun.new(environment / "prepared", tiny_model)
    assert run.run(2) == ExitCode.DONE, run.log()
    assert position_of(run.folder) == f"{TRAINING}, step 0"
    return run


@pytest.fixture(scope="module")
def pair(prepared: ProcessesRun, environment: Path) -> ProcessesRun:
    """Return a run that two processes trained without disturbance."""
    run = prepared.copy(environment / "pair")
    assert run.run(2) == ExitCode.DONE, run.log()
    return run


def test_losses_and_weights_equal_those_of_one_process(
    pair: ProcessesRun, environment: Path, tiny_model: Path
) -> None:
    alone = ProcessesRun.new(environment / "alone", tiny_model)
    assert alone.run(1) == ExitCode.DONE, alone.log()
    assert position_of(pair.folder) == position_of(alone.folder) == GATE
    expected, found = curves(alone), curves(pair)
    assert {"train/loss", "train/sft/loss", "train/kto/kl", "train/dpo/margin"} <= expected.keys()
    assert {tag: set(points) for tag, points in found.items()} == {
        tag: set(points) for tag, points in expected.items()
    }
    for tag, points in expected.items():
        assert found[tag] == pytest.approx(points, abs=1e-4), tag
    weights, others = load_file(alone.adapter), load_file(pair.adapter)
    assert weights.keys() == others.keys()
    assert max(float((weights[name] - others[name]).abs().max()) for name in weights) < 1e-5


def test_plan_has_steps_with_fewer_rows_than_processes(pair: ProcessesRun, tiny_model: Path) -> None:
    """The equality above covers a process without rows, and unequal numbers of micro-batches."""
    sizes = [tokenize(cached_chat(tiny_model), row).tokens for row in mixed_rows()]
    recipe = resolved.read(pair.folder)
    assert recipe is not None
    assert max(sizes) > recipe.tokens_per_step / 2
    steps = len(curves(pair)["train/loss"])
    assert steps > len(sizes) * recipe.epochs / 2, "fewer than two rows per step on average"


def test_run_whose_processes_are_killed_ends_with_the_same_weights(
    prepared: ProcessesRun, pair: ProcessesRun, environment: Path
) -> None:
    run = prepared.copy(environment / "killed")
    for rank, step in ((1, 4), (0, 10)):
        agent = run.start(2)
        victim = ranks_of(agent)[rank]
        wait_until(lambda: run.step >= step, START_S, f"checkpoint {step}")  # noqa: B023 - called at once
        os.kill(victim, signal.SIGKILL)
        assert agent.wait(60) == -signal.SIGKILL, run.log()
        assert position_of(run.folder) == f"{TRAINING}, step {run.step}"
    assert run.run(2) == ExitCode.DONE, run.log()
    assert curves(run)["train/loss"] == curves(pair)["train/loss"]
    assert run.adapter.read_bytes() == pair.adapter.read_bytes()


def test_divided_base_learns_the_same_and_resumes(
    pair: ProcessesRun, environment: Path, tiny_model: Path
) -> None:
    run = ProcessesRun.new(environment / "divided", tiny_model, sharding="on")
    assert run.run(2) == ExitCode.DONE, run.log()
    agent = run.start(2)
    victim = ranks_of(agent)[1]
    wait_until(lambda: run.step >= 4, START_S, "checkpoint 4")
    os.kill(victim, signal.SIGKILL)
    agent.wait(60)
    assert run.run(2) == ExitCode.DONE, run.log()
    assert run.log().count("base_divided") == 4
    found = curves(run)
    for tag, points in curves(pair).items():
        assert found[tag] == pytest.approx(points, abs=1e-4), tag
    weights, others = load_file(pair.adapter), load_file(run.adapter)
    assert weights.keys() == others.keys()
    assert max(float((weights[name] - others[name]).abs().max()) for name in weights) < 1e-5


def test_two_machines_train_stop_and_resume_together(
    prepared: ProcessesRun, pair: ProcessesRun, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two agents on this machine. Only the first one has the run's folder."""
    port = choose_ports({"rendezvous": 0})["rendezvous"]
    monkeypatch.setenv("LOOPWRIGHT_TRAINER_NNODES", "2")
    monkeypatch.setenv("LOOPWRIGHT_TRAINER_RDZV_ENDPOINT", f"127.0.0.1:{port}")
    monkeypatch.setenv("LOOPWRIGHT_TRAINER_DEVICE", "cpu")
    run = prepared.copy(environment / "machines")
    other = subprocess.Popen(
        [sys.executable, "-m", "services.trainer.worker.join"],
        env=os.environ | {"LOOPWRIGHT_TRAINER_NODE_RANK": "1", "LOOPWRIGHT_DATA_DIR": "/nonexistent"},
        cwd=ROOT,
    )
    try:
        agent = run.start(1, nodes=2)
        wait_until(lambda: run.step >= 4, START_S, "checkpoint 4")
        agent.terminate()
        assert agent.wait(60) == ExitCode.STOPPED, run.log()
        assert 4 <= run.step < len(curves(pair)["train/loss"])
        assert run.start(1, nodes=2).wait(START_S) == ExitCode.DONE, run.log()
    finally:
        other.terminate()
        other.wait(60)
    assert curves(run)["train/loss"] == curves(pair)["train/loss"]
    assert run.adapter.read_bytes() == pair.adapter.read_bytes()


def test_processes_end_with_their_agent(prepared: ProcessesRun, environment: Path) -> None:
    """The service is the agent's parent, and `test_trainer_child` shows that the agent ends with it."""
    agent = prepared.copy(environment / "agent").start(2)
    ranks = ranks_of(agent)
    agent.kill()
    agent.wait(10)
    wait_until(lambda: not any(map(is_alive, ranks.values())), 10, "the end of the ranks")


@pytest.mark.parametrize(
    ("error", "code"),
    [("ValueError('injected')", 1), ("MemoryError('injected')", ExitCode.OUT_OF_MEMORY)],
)
def test_failing_process_ends_the_run_with_its_error(
    prepared: ProcessesRun,
    environment: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: str,
    code: int,
) -> None:
    (tmp_path / "sitecustomize.py").write_text(FAULT.format(error=error))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}:{ROOT}/sdk/src")
    run = prepared.copy(environment / f"failed-{code}")
    size = json.loads((run.folder / MICRO_BATCH).read_text())
    (run.folder / MICRO_BATCH).write_text(json.dumps(size | {"tokens": 1000, "planned": 1000}))
    agent = run.start(2)
    assert agent.wait(START_S) == code, run.log()
    assert "injected" in run.log()
    after = micro_batch.read(run.folder)
    assert after is not None
    assert after.tokens == (500 if code == ExitCode.OUT_OF_MEMORY else 1000)
