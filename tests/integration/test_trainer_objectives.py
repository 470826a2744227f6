"""Each objective changes a small random model in its direction, alone and mixed with the others."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from services.trainer.base.base_answers import REPLAY_PROMPTS, BaseAnswer, shipped_prompts
from services.trainer.base.model import answer_losses, with_adapter
from services.trainer.core.chat import Messages
from services.trainer.core.recipe import Recipe
from services.trainer.core.resolved_recipe import ResolvedRecipe
from services.trainer.dataset import snapshot_files
from services.trainer.dataset.snapshot_files import Snapshot
from services.trainer.files import write_whole
from services.trainer.progress import Progress
from services.trainer.run import environment, micro_batch
from services.trainer.run.context import RunContext
from services.trainer.run.folder import ADAPTER, RESOLVED_RECIPE
from services.trainer.run.run_table import RunConfig
from services.trainer.settings import TrainerSettings
from services.trainer.training import prepare
from services.trainer.training.adapter_files import save_adapter
from services.trainer.training.checkpoints import RunCallback
from services.trainer.training.fine_tune import fine_tune
from services.trainer.training.losses import loss_weights
from services.trainer.training.packed_attention import PACKED, attention
from services.trainer.training.rows import TokenizedRow, tokenize
from services.trainer.training.step_dataset import StepDataset
from services.trainer.training.train import train
from services.trainer.training.trainer import StepTrainer
from services.trainer.training.training_arguments import training_arguments
from services.trainer.versions.model_card import ADAPTER_FILES
from shared.adapters.in_memory import InMemoryCache
from shared.feedback_kinds import Objective
from shared.versions import VersionRef
from tests.trainer_factories import LINE, grouped, row
from tests.trainer_rows import cached_chat, resolved_recipe, tokenized

RECIPE = resolved_recipe(learning_rate=1e-2, rank=4)
PROMPTS: list[Messages] = [(("user", f"What of number {i}?"),) for i in range(8)]
WANTED, UNWANTED = "It is a short one.", "Whatever you may think of it, many words."
KINDS: tuple[Objective, ...] = ("sft", "kto", "dpo")


class LogCallback(RunCallback):
    """Callback of a run that records the logs with a loss."""

    def __init__(self, **options: Any) -> None:
        self.logs: list[dict[str, Any]] = []
        super().__init__(Progress(InMemoryCache(), LINE, "run-1"), threading.Event(), **options)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        super().on_log(args, state, control, logs, **more)
        if "loss" in logs:
            self.logs.append(dict(logs))


@dataclass
class Bench:
    """The small model with a folder for checkpoints."""

    model: Path
    folder: Path
    callback: LogCallback = field(default_factory=LogCallback)

    def base(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32)

    def plain(self) -> list[TokenizedRow]:
        return [
            tokenized(self.model, "sft", prompt, f"It is {'short ' * i}number {i}.")
            for i, prompt in enumerate(PROMPTS)
        ]

    def judged(self) -> list[TokenizedRow]:
        return [
            tokenized(self.model, "kto", prompt, WANTED if i % 2 else UNWANTED, liked=bool(i % 2))
            for i, prompt in enumerate(PROMPTS)
        ]

    def pairs(self) -> list[TokenizedRow]:
        return [tokenized(self.model, "dpo", prompt, WANTED, UNWANTED) for prompt in PROMPTS]

    def learn(self, steps: Sequence[Sequence[TokenizedRow]], recipe: ResolvedRecipe = RECIPE) -> Any:
        return fine_tune(
            self.base(),
            [tuple(step) for step in steps],
            recipe,
            self.folder,
            callback=self.callback,
            stop=threading.Event(),
        )

    def log_likelihoods(self, model: Any) -> tuple[float, float]:
        """Return the mean log-likelihood per token of the wanted and of the unwanted answers."""
        answered = [[(prompt, text) for prompt in PROMPTS] for text in (WANTED, UNWANTED)]
        wanted, unwanted = (answer_losses(model.eval(), cached_chat(self.model), one) for one in answered)
        return -sum(wanted) / len(wanted), -sum(unwanted) / len(unwanted)


@pytest.fixture
def bench(tiny_model: Path, tmp_path: Path) -> Bench:
    return Bench(tiny_model, tmp_path)


def steps_of(rows: Sequence[TokenizedRow], epochs: int, size: int = 4) -> list[Sequence[TokenizedRow]]:
    """Return all rows in steps of `size`, `epochs` times."""
    return [rows[start : start + size] for start in range(0, len(rows), size)] * epochs


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}


def test_kto_raises_liked_and_lowers_disliked_answers(bench: Bench) -> None:
    wanted, unwanted = bench.log_likelihoods(bench.base())
    liked, disliked = bench.log_likelihoods(bench.learn(steps_of(bench.judged(), 4)))
    assert liked > wanted
    assert disliked < unwanted


def test_dpo_prefers_the_chosen_answer_without_lowering_it(bench: Bench) -> None:
    wanted, unwanted = bench.log_likelihoods(bench.base())
    chosen, rejected = bench.log_likelihoods(bench.learn(steps_of(bench.pairs(), 4)))
    assert chosen - rejected > wanted - unwanted
    assert chosen > wanted


def test_sft_raises_the_answer(bench: Bench) -> None:
    before, _ = bench.log_likelihoods(bench.base())
    rows = [tokenized(bench.model, "sft", prompt, WANTED) for prompt in PROMPTS]
    learned = bench.learn(steps_of(rows, 3))
    assert bench.log_likelihoods(learned)[0] > before + 0.2
    assert all("lora_" in name for name in weights(learned))


def test_one_step_trains_all_objectives(bench: Bench) -> None:
    """Each objective moves the model in its direction, although every step has rows of all."""
    wanted, unwanted = bench.log_likelihoods(bench.base())
    judged, pairs, plain = bench.judged(), bench.pairs(), bench.plain()
    steps = [[*judged[i : i + 2], pairs[i], plain[i]] for i in range(0, 8, 2)] * 4
    liked, disliked = bench.log_likelihoods(bench.learn(steps))
    assert liked > wanted
    assert liked - disliked > wanted - unwanted
    metrics = {"sft/loss", "kto/loss", "kto/kl", "kto/margin", "dpo/loss", "dpo/margin"}
    assert all(metrics <= logs.keys() for logs in bench.callback.logs)
    last = bench.callback.logs[-1]
    assert last["kto/margin"] > 0
    assert last["dpo/margin"] > 0


def test_preference_weight_decides_the_direction_of_shared_weights(bench: Bench, tmp_path: Path) -> None:
    """SFT raises an answer that is also disliked. The weight says which of the two wins."""
    disliked = [tokenized(bench.model, "kto", prompt, UNWANTED, liked=False) for prompt in PROMPTS]
    trained = [tokenized(bench.model, "sft", prompt, UNWANTED) for prompt in PROMPTS]
    steps = [[*disliked[i : i + 4], *trained[i : i + 4]] for i in (0, 4)] * 6
    _, before = bench.log_likelihoods(bench.base())
    found = {}
    for weight in (0.01, 1000.0):
        recipe = RECIPE.model_copy(update={"preference_weight": weight, "kto_beta": 0.02})
        found[weight] = bench.log_likelihoods(
            Bench(bench.model, tmp_path / str(weight)).learn(steps, recipe)
        )[1]
    assert found[0.01] > before + 0.2
    assert found[1000.0] < before


def test_full_method_trains_all_weights_against_the_base(bench: Bench) -> None:
    before = bench.log_likelihoods(bench.base())
    full = RECIPE.model_copy(update={"method": "full", "learning_rate": 1e-3})
    learned = bench.learn([*steps_of(bench.plain(), 1), *steps_of(bench.judged(), 2)], full)
    wanted, unwanted = bench.log_likelihoods(learned)
    assert wanted - unwanted > before[0] - before[1]
    assert not any("lora_" in name for name in weights(learned))
    first = next(logs for logs in bench.callback.logs if "kto/margin" in logs)
    assert first["kto/margin"] != 0, "the previous step has moved the model away from its reference"
    save_adapter(learned, bench.folder / "adapter", "a base")
    with with_adapter(bench.base(), bench.folder / "adapter") as kept:
        assert bench.log_likelihoods(kept) == pytest.approx((wanted, unwanted), abs=0.05)
    files = [path for path in (bench.folder / "adapter").iterdir() if path.suffix == ".json"]
    assert all(str(bench.model.parent) not in path.read_text() for path in files)


def test_full_method_starts_at_its_reference(bench: Bench) -> None:
    full = RECIPE.model_copy(update={"method": "full", "learning_rate": 1e-6})
    bench.learn([[*bench.judged()[:4], *bench.pairs()[:2]]], full)
    assert bench.callback.logs[0]["kto/margin"] == pytest.approx(0, abs=1e-4)
    assert bench.callback.logs[0]["dpo/margin"] == pytest.approx(0, abs=1e-4)


def test_run_trains_all_feedback_and_replay_data_in_one_adapter(tiny_model: Path, tmp_path: Path) -> None:
    """From the snapshot to the adapter, as the process of a run does it."""
    correction = row("Who founded Acme?", "Ida Voss founded it.")
    rows = [
        replace(correction, response_id=f"c{i}", answer=f"Ida Voss founded it in {1900 + i}.")
        for i in range(5)
    ]
    rows += [
        replace(
            correction, response_id=f"t{i}", kind="thumbs", objective="kto", label=i % 2 == 0, original=""
        )
        for i in range(6)
    ]
    rows += [replace(correction, response_id="p", kind="preference", objective="dpo")]
    run = tmp_path / "runs" / "r-1"
    snapshot_files.write(run, Snapshot(tuple(grouped(rows)), (), (), {"0": 1}), 10)
    recipe = Recipe(
        threads=1,
        rank=4,
        replay_prompts=2,
        replay_share=0,
        replay_new_tokens=8,
        epochs=2.0,
        tokens_per_step=250,
    )
    stable = VersionRef(version=f"{LINE}@base-00000000", kind="base", digest="0" * 64)
    config = RunConfig("r-1", LINE, {"0": 1}, recipe, str(tiny_model), "tiny", "0" * 64, stable, None, 0)
    settings = TrainerSettings(line=LINE, data_dir=tmp_path / "data")
    context = RunContext(run, config, settings, Progress(InMemoryCache(), LINE, "r-1"), threading.Event())
    prompts = shipped_prompts(REPLAY_PROMPTS, 2)
    base_answers = [
        BaseAnswer(one.id, one.prompt, f"It is thing {i}.", 8, ended=True) for i, one in enumerate(prompts)
    ]
    write_whole(
        settings.replay_dir / "00000000.jsonl",
        "".join(json.dumps(asdict(one)) + "\n" for one in base_answers).encode(),
    )
    planned: list[Any] = []
    original = prepare.plan_steps

    def record(*arguments: Any, **options: Any) -> Any:
        planned.extend(original(*arguments, **options))
        return list(planned)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "plan_steps", record)
        train(context)
    assert {path.name for path in (run / ADAPTER).iterdir()} == set(ADAPTER_FILES)
    times = Counter(one.name for step in planned for one in step)
    assert {times[one.identity] for one in rows} == {2}
    assert {times[f"replay/{one.id}"] for one in base_answers} == {1}
    kinds = [Counter(one.objective for one in step) for step in planned]
    assert all({"sft", "kto"} <= kind.keys() for kind in kinds), "every step mixes the objectives"
    resolved = ResolvedRecipe.model_validate_json((run / RESOLVED_RECIPE).read_bytes())
    assert (resolved.tokens_per_step, resolved.rank) == (250, 4)
    assert resolved.learning_rate == 2e-3, "the tiny base is narrower than the one of the reference"
    size = micro_batch.read(run)
    assert size is not None
    assert size.tokens == resolved.micro_batch_tokens
    assert environment.read(run)[0]["machine"]["micro_batch_tokens"] == size.tokens


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_answer_and_its_end_carry_loss(bench: Bench, kind: Objective) -> None:
    chat = cached_chat(bench.model)
    trained = tokenize(chat, replace(row("Who?", WANTED, original=UNWANTED), objective=kind, label=True))
    assert chat.tokenizer.decode(list(trained.answer)) == f"{WANTED}<|im_end|>\n"
    assert chat.tokenizer.decode(list(trained.rejected)) == (
        f"{UNWANTED}<|im_end|>\n" if kind == "dpo" else ""
    )
    assert list(trained.prompt) == chat.prompt_ids([("user", "Who?")])


@pytest.mark.parametrize("kind", KINDS)
def test_end_of_a_truncated_answer_is_not_trained(bench: Bench, kind: Objective) -> None:
    chat = cached_chat(bench.model)
    whole = replace(row("Who?", WANTED, original=UNWANTED), objective=kind, label=True)
    end = tuple(chat.end_of_turn_ids)
    truncated = tokenize(chat, replace(whole, unended=True, original_unended=True))
    assert truncated.answer + end == tokenize(chat, whole).answer
    if kind == "dpo":
        assert truncated.rejected + end == tokenize(chat, whole).rejected


def test_truncated_answers_do_not_teach_to_stop(bench: Bench, tmp_path: Path) -> None:
    """Compare the likelihood of an end of turn after an answer, before and after training."""
    recipe = RECIPE.model_copy(update={"learning_rate": 3e-2})

    def end_after(model: Any) -> float:
        chat = cached_chat(bench.model)
        prompt = [*chat.prompt_ids(PROMPTS[0]), *chat.answer_ids(WANTED, ended=False)]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1)
        return float(logits[chat.end_of_turn_ids[0]])

    def learned(folder: Path, *, ended: bool) -> float:
        rows = [tokenized(bench.model, "sft", prompt, WANTED, ended=ended) for prompt in PROMPTS]
        return end_after(Bench(bench.model, folder).learn(steps_of(rows, 16), recipe))

    before = end_after(bench.base())
    assert learned(tmp_path / "whole", ended=True) > 2.5 * before
    assert learned(tmp_path / "truncated", ended=False) < 1.5 * before


@pytest.mark.parametrize("setting", ["gradient_checkpointing", "dropout", "rslora"])
def test_settings_of_the_recipe_reach_the_training(bench: Bench, tmp_path: Path, setting: str) -> None:
    changed = RECIPE.model_copy(
        update={
            "gradient_checkpointing": {"gradient_checkpointing": True},
            "dropout": {"lora_dropout": 0.5},
            "rslora": {"rslora": True},
        }[setting]
    )
    steps = steps_of([*bench.plain(), *bench.judged()], 1)
    one = weights(bench.learn(steps))
    other = weights(Bench(bench.model, tmp_path / "other").learn(steps, changed))
    same = all(torch.allclose(one[name], other[name], rtol=1e-3, atol=1e-5) for name in one)
    assert same == (setting == "gradient_checkpointing"), "checkpointing changes time and memory only"


def test_training_stops_when_held_out_rows_get_worse(bench: Bench, tmp_path: Path) -> None:
    """The held-out rows have answers that the training makes less likely."""
    held_out = [tokenized(bench.model, "sft", prompt, UNWANTED) for prompt in PROMPTS[4:]]
    rows = [tokenized(bench.model, "sft", prompt, WANTED) for prompt in PROMPTS[:4]]
    steps = [tuple(rows)] * 12

    def learned(folder: Path, early_stopping: int) -> list[dict[str, Any]]:
        callback = LogCallback(validation_steps=2, early_stopping=early_stopping)
        recipe = RECIPE.model_copy(update={"learning_rate": 0.1})
        fine_tune(
            bench.base(),
            steps,
            recipe,
            folder,
            callback=callback,
            stop=threading.Event(),
            validation=held_out,
        )
        return callback.logs

    stopped, whole = learned(tmp_path / "stopped", 2), learned(tmp_path / "whole", 0)
    assert len(stopped) < len(whole) == 12
    assert [logs["loss"] for logs in stopped] == [logs["loss"] for logs in whole[: len(stopped)]]


def test_loss_on_held_out_rows_is_that_of_the_gate(bench: Bench) -> None:
    held_out = [tokenized(bench.model, "sft", prompt, WANTED, ended=False) for prompt in PROMPTS]
    trainer = StepTrainer(
        StepDataset([], 100),
        loss_weights(RECIPE, []),
        plain_head=True,
        schedule="constant",
        warmup=0,
        validation=held_out,
        model=bench.base(),
        args=training_arguments(bench.folder, RECIPE),
    )
    with attention(trainer.model, PACKED):
        found = trainer.evaluate()["eval_loss"]
    assert found == pytest.approx(-bench.log_likelihoods(bench.base())[0], rel=1e-4)
