"""An interrupted run ends with the same weights, to the last bit, as a run that was not interrupted.

Trains a tiny model in this process.
"""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from services.trainer.base.model import load_base
from services.trainer.base.tokenization import load_tokenizer
from services.trainer.core.recipe import Recipe
from services.trainer.dataset.objectives import TrlRow, dpo_row, kto_row, sft_row
from services.trainer.progress import Progress
from services.trainer.run import micro_batch
from services.trainer.run.checkpoint_manifest import MANIFEST, intact_checkpoints, write_manifest
from services.trainer.run.context import RunFailed, RunStopped
from services.trainer.run.folder import CHECKPOINTS, NAN_REPORT, TENSORBOARD
from services.trainer.training.checkpoints import RunCallback
from services.trainer.training.cpu.attention import with_training_attention
from services.trainer.training.train import fine_tune
from shared.adapters import redis_keys
from shared.adapters.in_memory import InMemoryCache

BATCH_SIZE = 4
RECIPE = Recipe(batch_size=BATCH_SIZE, rank=4, checkpoint_steps=2, threads=1, learning_rate=1e-3)
Weights = dict[str, torch.Tensor]


def question(n: int) -> list[tuple[str, str]]:
    return [("user", f"What is the number of house {n}, and who lives there since {1900 + n}?")]


ROWS: list[TrlRow] = [
    *[sft_row(question(n), f"It is number {n * n}, where {'Ada' * (1 + n % 3)} lives.") for n in range(12)],
    *[kto_row(question(n), f"Number {n}.", n % 2 == 0) for n in range(4)],
    *[dpo_row(question(n), f"It is number {n}.", "I do not know.") for n in range(4)],
    *[sft_row(question(n), f"It is number {n}.") for n in range(20, 24)],
]
STEPS = len(ROWS) // BATCH_SIZE
ROW_NAMES = [[f"r{step}-{n}" for n in range(BATCH_SIZE)] for step in range(STEPS)]


class StopAfter(RunCallback):
    """Callback that stops the training after a step."""

    def __init__(self, step: int, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == self._step:
            self._stop.set()
        super().on_step_end(args, state, control, **rest)


class TrainingRun:
    """One run's folder. Each call of `train` stands for one process of the run."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model, self.cache = folder, model, InMemoryCache()
        folder.mkdir()

    @property
    def checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS

    def train(
        self,
        *,
        stop_after: int = 0,
        micro_batch_size: int | None = None,
        callback_class: type[RunCallback] = RunCallback,
    ) -> Weights:
        stop, progress = threading.Event(), Progress(self.cache, "assistant", "run-1")
        arguments = (
            progress,
            stop,
            self.folder,
            lambda step: ROW_NAMES[step - 1],
            micro_batch.reduction_note(self.folder, BATCH_SIZE),
        )
        model = fine_tune(
            with_training_attention(load_base(self.model, 1), RECIPE.max_tokens),
            load_tokenizer(self.model),
            ROWS,
            RECIPE,
            self.checkpoints,
            callback=StopAfter(stop_after, *arguments) if stop_after else callback_class(*arguments),
            stop=stop,
            micro_batch_size=micro_batch_size,
        )
        return {
            name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad
        }

    def interrupt_after(self, step: int) -> None:
        with pytest.raises(RunStopped):
            self.train(stop_after=step)

    def progress(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self.cache.get(redis_keys.run_progress("assistant")) or b"{}")
        return record


@pytest.fixture(scope="module")
def uninterrupted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """Return the weights of a run that was not interrupted."""
    return TrainingRun(tmp_path_factory.mktemp("uninterrupted") / "run", tiny_model).train()


@pytest.fixture
def run(tiny_model: Path, tmp_path: Path) -> TrainingRun:
    return TrainingRun(tmp_path / "run", tiny_model)


def equal(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_run_interrupted_twice_ends_with_the_same_weights(run: TrainingRun, uninterrupted: Weights) -> None:
    for step in (3, 5):
        run.interrupt_after(step)
        assert next(intact_checkpoints(run.checkpoints)).name == f"checkpoint-{step}"
    assert equal(run.train(), uninterrupted)
    assert (run.progress()["step"], run.progress()["share"]) == (STEPS, 1.0)
    assert {"loss", "tokens_per_s", "eta_s"} <= run.progress().keys()
    assert len(list((run.folder / TENSORBOARD).glob("*tfevents*"))) == 3, "one file for each start"


def test_comparison_detects_a_resume_without_optimizer_state(
    run: TrainingRun, uninterrupted: Weights
) -> None:
    run.interrupt_after(3)
    checkpoint = next(intact_checkpoints(run.checkpoints))
    (checkpoint / "optimizer.pt").unlink()
    write_manifest(checkpoint, 3)
    assert not equal(run.train(), uninterrupted)


def test_damaged_checkpoint_resumes_from_the_one_before(run: TrainingRun, uninterrupted: Weights) -> None:
    run.interrupt_after(5)
    newest = next(intact_checkpoints(run.checkpoints))
    (newest / "optimizer.pt").write_bytes((newest / "optimizer.pt").read_bytes()[:-7])
    shutil.copytree(newest, newest.with_name("checkpoint-6"))
    (newest.with_name("checkpoint-6") / MANIFEST).unlink()  # as after a kill during the write
    assert next(intact_checkpoints(run.checkpoints)).name == "checkpoint-4"
    assert equal(run.train(), uninterrupted)


def test_smaller_micro_batch_learns_the_same_and_is_reported(
    run: TrainingRun, uninterrupted: Weights
) -> None:
    run.interrupt_after(3)
    assert micro_batch.halve(run.folder, BATCH_SIZE) == 2
    weights = run.train(micro_batch_size=micro_batch.size(run.folder, BATCH_SIZE))
    assert run.progress()["step"] == STEPS, "the number of steps does not change"
    assert "micro-batches of 2" in run.progress()["reason"]
    for name, weight in weights.items():
        torch.testing.assert_close(weight, uninterrupted[name], rtol=0.05, atol=2e-3)


def test_nan_loss_fails_the_run_and_keeps_the_last_good_checkpoint(run: TrainingRun) -> None:
    class PoisonStep5(RunCallback):
        """Callback that sets weights to NaN before step 5."""

        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if state.global_step == 4:
                next(weight for weight in model.parameters() if weight.requires_grad).data.fill_(torch.nan)

    with pytest.raises(RunFailed, match="is nan at step 5: lower LOOPWRIGHT_TRAINER_LEARNING_RATE"):
        run.train(callback_class=PoisonStep5)
    report = json.loads((run.folder / NAN_REPORT).read_text())
    assert (report["step"], report["rows"]) == (5, ROW_NAMES[4])
    assert [logs["step"] for logs in report["history"]][:4] == [1, 2, 3, 4]
    assert report["last_good_checkpoint"] == f"{CHECKPOINTS}/checkpoint-4"
    checkpoint = next(intact_checkpoints(run.checkpoints))
    assert checkpoint.name == "checkpoint-4"
    with safe_open(checkpoint / "adapter_model.safetensors", "pt") as weights:
        assert all(weights.get_tensor(name).isfinite().all() for name in weights.keys())  # noqa: SIM118 - no mapping
