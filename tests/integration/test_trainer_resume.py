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
from services.trainer.progress import Progress
from services.trainer.run import micro_batch
from services.trainer.run.checkpoint_manifest import MANIFEST, intact_checkpoints, write_manifest
from services.trainer.run.context import RunFailed, RunStopped
from services.trainer.run.folder import CHECKPOINTS, NAN_REPORT, TENSORBOARD
from services.trainer.training.checkpoints import RunCallback
from services.trainer.training.fine_tune import fine_tune
from services.trainer.training.rows import TokenizedRow, longest
from services.trainer.training.step_plan import Step
from shared.adapters import redis_keys
from shared.adapters.in_memory import InMemoryCache
from tests.trainer_rows import resolved_recipe, tokenized

STEPS = 6
RECIPE = resolved_recipe(rank=4, checkpoint_steps=2, learning_rate=1e-3, micro_batch_tokens=1000)
Weights = dict[str, torch.Tensor]


def question(n: int) -> list[tuple[str, str]]:
    return [("user", f"What is the number of house {n}, and who lives there since {1900 + n}?")]


def steps_of(model: Path) -> list[Step]:
    """Return steps that mix all objectives, as a run's do."""

    def step(number: int) -> list[TokenizedRow]:
        rows = [
            tokenized(
                model,
                "sft",
                question(n),
                f"It is number {n * n}, where {'Ada' * (1 + n % 3)} lives.",
                name=f"sft-{n}",
            )
            for n in (2 * number, 2 * number + 1)
        ]
        if number in (1, 2, 4):
            rows += [
                tokenized(model, "kto", question(n), f"Number {n}.", liked=n % 2 == 0, name=f"kto-{n}")
                for n in (2 * number, 2 * number + 1)
            ]
        if number in (2, 3):
            answers = (f"It is number {number}.", "I do not know.")
            rows.append(tokenized(model, "dpo", question(number), *answers, name=f"dpo-{number}"))
        return rows

    return [tuple(step(number)) for number in range(STEPS)]


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
        self.steps = steps_of(model)
        folder.mkdir()

    @property
    def checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS

    def train(
        self,
        *,
        stop_after: int = 0,
        callback_class: type[RunCallback] = RunCallback,
    ) -> Weights:
        stop, progress = threading.Event(), Progress(self.cache, "assistant", "run-1")
        rows = [row for step in self.steps for row in step]
        size = micro_batch.start(self.folder, RECIPE.micro_batch_tokens, longest(rows))
        arguments = (
            progress,
            stop,
            self.folder,
            lambda step: [row.name for row in self.steps[step - 1]],
            micro_batch.reduction_note(self.folder),
        )
        model = fine_tune(
            load_base(self.model, 1),
            self.steps,
            RECIPE.model_copy(update={"micro_batch_tokens": size.tokens}),
            self.checkpoints,
            callback=StopAfter(stop_after, *arguments) if stop_after else callback_class(*arguments),
            stop=stop,
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


@pytest.mark.parametrize("interrupted_after", [2, 4, 5])
def test_mean_of_the_last_weights_survives_interruptions(
    run: TrainingRun, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, interrupted_after: int
) -> None:
    seen: list[Weights] = []

    class Recorder(RunCallback):
        """Callback that records the weights after each step."""

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **rest: Any) -> None:
            super().on_step_end(args, state, control, **rest)
            seen.append(
                {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}
            )

    whole = TrainingRun(run.folder.with_name("whole"), tiny_model).train(callback_class=Recorder)
    assert len(seen) == STEPS
    for name, weight in whole.items():
        expected = torch.stack([step[name] for step in seen[STEPS // 2 :]]).mean(0)
        torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-7)
        assert not torch.equal(weight, seen[-1][name]) or not weight.any()
    run.interrupt_after(interrupted_after)
    assert equal(run.train(), whole)
    monkeypatch.setattr(
        "tests.integration.test_trainer_resume.RECIPE", RECIPE.model_copy(update={"average_share": 0.0})
    )
    last = TrainingRun(run.folder.with_name("last"), tiny_model).train()
    assert equal(last, seen[-1])


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
    halved = [micro_batch.halve(run.folder) for _ in range(3)]
    assert halved[:2] == [500, 250]
    weights = run.train()
    assert run.progress()["step"] == STEPS, "the number of steps does not change"
    assert f"micro-batches of {halved[-1]} tokens" in run.progress()["reason"]
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
    assert (report["step"], report["rows"]) == (5, [row.name for row in run.steps[4]])
    assert [logs["step"] for logs in report["history"]][:4] == [1, 2, 3, 4]
    assert report["last_good_checkpoint"] == f"{CHECKPOINTS}/checkpoint-4"
    checkpoint = next(intact_checkpoints(run.checkpoints))
    assert checkpoint.name == "checkpoint-4"
    with safe_open(checkpoint / "adapter_model.safetensors", "pt") as weights:
        assert all(weights.get_tensor(name).isfinite().all() for name in weights.keys())  # noqa: SIM118 - no mapping
