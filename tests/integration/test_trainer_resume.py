"""A run that was interrupted ends with the weights, to the last bit, of one that was not; one whose loss is no number
ends with evidence. Real training of a tiny model, in this process."""

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
from services.trainer.dataset.objectives import dpo_row, kto_row, sft_row
from services.trainer.progress import Progress
from services.trainer.run import micro_batch
from services.trainer.run.checkpoint_manifest import MANIFEST, intact_checkpoints, write_manifest
from services.trainer.run.context import RunFailed, RunStopped
from services.trainer.run.folder import CHECKPOINTS, NAN_REPORT, TENSORBOARD
from services.trainer.training.checkpoints import RunCallback
from services.trainer.training.train import fine_tune, with_training_attention
from shared.adapters import redis_keys
from shared.adapters.in_memory import InMemoryCache

BATCH = 4
RECIPE = Recipe(batch_size=BATCH, rank=4, checkpoint_steps=2, threads=1, learning_rate=1e-3)
Weights = dict[str, torch.Tensor]


def asked(n: int) -> list[tuple[str, str]]:
    return [("user", f"What is the number of house {n}, and who lives there since {1900 + n}?")]


ROWS = [
    *[sft_row(asked(n), f"It is number {n * n}, where {'Ada' * (1 + n % 3)} lives.") for n in range(12)],
    *[kto_row(asked(n), f"Number {n}.", n % 2 == 0) for n in range(4)],
    *[dpo_row(asked(n), f"It is number {n}.", "I do not know.") for n in range(4)],
    *[sft_row(asked(n), f"It is number {n}.") for n in range(20, 24)],
]
STEPS = len(ROWS) // BATCH
NAMES = [[f"r{step}-{n}" for n in range(BATCH)] for step in range(STEPS)]


class StopAfter(RunCallback):
    """Asks to stop when a step is done."""

    def __init__(self, step: int, *given: Any) -> None:
        super().__init__(*given)
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == self._step:
            self._stop.set()
        super().on_step_end(args, state, control, **rest)


class Lesson:
    """One run's folder; `learn` is one process of it."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model, self.cache = folder, model, InMemoryCache()
        folder.mkdir()

    @property
    def checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS

    def learn(
        self, *, stop_after: int = 0, piece: int | None = None, watch: type[RunCallback] = RunCallback
    ) -> Weights:
        stop, progress = threading.Event(), Progress(self.cache, "assistant", "run-1")
        told = (
            progress,
            stop,
            self.folder,
            lambda step: NAMES[step - 1],
            micro_batch.reduction_note(self.folder, BATCH),
        )
        model = fine_tune(
            with_training_attention(load_base(self.model, 1), RECIPE.max_tokens),
            load_tokenizer(self.model),
            ROWS,
            RECIPE,
            self.checkpoints,
            progress=progress,
            stop=stop,
            watch=StopAfter(stop_after, *told) if stop_after else watch(*told),
            piece=piece,
        )
        return {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}

    def interrupted(self, step: int) -> None:
        with pytest.raises(RunStopped):
            self.learn(stop_after=step)

    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.cache.get(redis_keys.run_progress("assistant")) or b"{}")
        return found


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """Of a run that nobody interrupted."""
    return Lesson(tmp_path_factory.mktemp("whole") / "run", tiny_model).learn()


@pytest.fixture
def lesson(tiny_model: Path, tmp_path: Path) -> Lesson:
    return Lesson(tmp_path / "run", tiny_model)


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_interrupted_twice_it_ends_with_the_same_weights_to_the_last_bit(
    lesson: Lesson, whole: Weights
) -> None:
    for step in (3, 5):
        lesson.interrupted(step)
        assert next(intact_checkpoints(lesson.checkpoints)).name == f"checkpoint-{step}"
    assert same(lesson.learn(), whole)
    assert (lesson.told()["step"], lesson.told()["share"]) == (STEPS, 1.0)
    assert {"loss", "tokens_per_s", "eta_s"} <= lesson.told().keys()
    assert len(list((lesson.folder / TENSORBOARD).glob("*tfevents*"))) == 3, "one file for each start"


def test_a_resume_that_forgets_something_is_caught_by_the_same_comparison(
    lesson: Lesson, whole: Weights
) -> None:
    lesson.interrupted(3)
    checkpoint = next(intact_checkpoints(lesson.checkpoints))
    (checkpoint / "optimizer.pt").unlink()
    write_manifest(checkpoint, 3)
    assert not same(lesson.learn(), whole)


def test_with_a_damaged_checkpoint_it_goes_on_from_the_one_before(lesson: Lesson, whole: Weights) -> None:
    lesson.interrupted(5)
    newest = next(intact_checkpoints(lesson.checkpoints))
    (newest / "optimizer.pt").write_bytes((newest / "optimizer.pt").read_bytes()[:-7])
    shutil.copytree(newest, newest.with_name("checkpoint-6"))
    (newest.with_name("checkpoint-6") / MANIFEST).unlink()  # half-written when it was killed
    assert next(intact_checkpoints(lesson.checkpoints)).name == "checkpoint-4"
    assert same(lesson.learn(), whole)


def test_in_smaller_pieces_it_learns_the_same_and_says_so(lesson: Lesson, whole: Weights) -> None:
    lesson.interrupted(3)
    assert micro_batch.halve(lesson.folder, BATCH) == 2
    pieced = lesson.learn(piece=micro_batch.size(lesson.folder, BATCH))
    assert lesson.told()["step"] == STEPS, "a step is a step"
    assert "in pieces of 2" in lesson.told()["reason"]
    for name, one in pieced.items():
        torch.testing.assert_close(one, whole[name], rtol=0.05, atol=2e-3)


def test_a_loss_that_is_no_number_ends_the_run_with_evidence_and_the_last_good_checkpoint(
    lesson: Lesson,
) -> None:
    class Poisoned(RunCallback):
        """From step 5 on the model gives no numbers."""

        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if state.global_step == 4:
                next(one for one in model.parameters() if one.requires_grad).data.fill_(torch.nan)

    with pytest.raises(RunFailed, match="is nan at step 5: lower LOOPWRIGHT_TRAINER_LEARNING_RATE"):
        lesson.learn(watch=Poisoned)
    told = json.loads((lesson.folder / NAN_REPORT).read_text())
    assert (told["step"], told["rows"]) == (5, NAMES[4])
    assert [one["step"] for one in told["history"]][:4] == [1, 2, 3, 4]
    assert told["last_good_checkpoint"] == f"{CHECKPOINTS}/checkpoint-4"
    kept = next(intact_checkpoints(lesson.checkpoints))
    assert kept.name == "checkpoint-4"
    with safe_open(kept / "adapter_model.safetensors", "pt") as weights:
        assert all(weights.get_tensor(name).isfinite().all() for name in weights.keys())  # noqa: SIM118 - no mapping
