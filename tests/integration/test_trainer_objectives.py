"""Each objective changes a small random model in its direction, by TRL's own loss."""

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
from peft import get_peft_model
from transformers import AutoModelForCausalLM, set_seed

from services.trainer.base.base_answers import REPLAY_PROMPTS, BaseAnswer, shipped_prompts
from services.trainer.base.model import answer_losses, with_adapter
from services.trainer.base.tokenization import load_chat, load_tokenizer
from services.trainer.core.chat import Messages
from services.trainer.core.recipe import Recipe
from services.trainer.dataset import snapshot_files
from services.trainer.dataset.objectives import dpo_row, kto_row, sft_row
from services.trainer.dataset.snapshot_files import Snapshot
from services.trainer.files import write_whole
from services.trainer.progress import Progress
from services.trainer.run.context import RunContext, RunFailed
from services.trainer.run.folder import ADAPTER
from services.trainer.run.run_table import RunConfig
from services.trainer.settings import TrainerSettings
from services.trainer.training import train
from services.trainer.training.checkpoints import RunCallback
from services.trainer.training.cpu.attention import with_training_attention
from services.trainer.training.lora import lora_config
from services.trainer.training.multi_objective_trainer import plan_steps
from services.trainer.training.truncated_answers import TRUNCATED, end_of_turn_ids
from services.trainer.versions.model_card import ADAPTER_FILES
from shared.adapters.in_memory import InMemoryCache
from shared.versions import VersionRef
from tests.trainer_factories import LINE, grouped, row

RECIPE = Recipe(batch_size=4, learning_rate=1e-2, preference_rate=1.0, rank=4, threads=1)
PROMPTS: list[Messages] = [(("user", f"What of number {i}?"),) for i in range(8)]
WANTED, UNWANTED = "It is a short one.", "Whatever you may think of it, many words."
JUDGED = [kto_row(prompt, WANTED if i % 2 else UNWANTED, bool(i % 2)) for i, prompt in enumerate(PROMPTS)]
PAIRS = [dpo_row(prompt, WANTED, UNWANTED) for prompt in PROMPTS]
PLAIN = [sft_row(prompt, f"It is {'short ' * i}number {i}.") for i, prompt in enumerate(PROMPTS)]
MIXED = [*PLAIN[:4], *JUDGED[:4], *PAIRS[:4], *PLAIN[4:], *JUDGED[4:], *PAIRS[4:6]]


class LogCallback(RunCallback):
    """Callback of a run that records the logs with a loss."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []
        super().__init__(Progress(InMemoryCache(), LINE, "run-1"), threading.Event())

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

    def learn(
        self, rows: Sequence[dict[str, Any]], recipe: Recipe = RECIPE, micro_batch_size: int | None = None
    ) -> Any:
        return train.fine_tune(
            with_training_attention(self.base(), recipe.max_tokens),
            load_tokenizer(self.model),
            rows,
            recipe,
            self.folder,
            callback=self.callback,
            stop=threading.Event(),
            micro_batch_size=micro_batch_size,
        )

    def adapted(self) -> Any:
        return get_peft_model(self.base(), lora_config(RECIPE))

    def parts(self, rows: Sequence[dict[str, Any]], model: Any) -> dict[Any, Any]:
        return train.objective_trainers(model, load_tokenizer(self.model), rows, RECIPE, self.folder, 4)

    def log_likelihoods(self, model: Any) -> tuple[float, float]:
        """Return the mean log-likelihood per token of the wanted and of the unwanted answers."""
        answered = [[(prompt, text) for prompt in PROMPTS] for text in (WANTED, UNWANTED)]
        wanted, unwanted = (answer_losses(model.eval(), load_chat(self.model), one) for one in answered)
        return -sum(wanted) / len(wanted), -sum(unwanted) / len(unwanted)


@pytest.fixture
def bench(tiny_model: Path, tmp_path: Path) -> Bench:
    return Bench(tiny_model, tmp_path)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}


def test_kto_raises_liked_and_lowers_disliked_answers(bench: Bench) -> None:
    wanted, unwanted = bench.log_likelihoods(bench.base())
    liked, disliked = bench.log_likelihoods(bench.learn(JUDGED * 4))
    assert liked > wanted
    assert disliked < unwanted


def test_dpo_prefers_the_chosen_answer_without_lowering_it(bench: Bench) -> None:
    wanted, unwanted = bench.log_likelihoods(bench.base())
    chosen, rejected = bench.log_likelihoods(bench.learn(PAIRS * 4))
    assert chosen - rejected > wanted - unwanted
    assert chosen > wanted


def test_sft_raises_the_answer(bench: Bench) -> None:
    before, _ = bench.log_likelihoods(bench.base())
    learned = bench.learn([sft_row(prompt, WANTED) for prompt in PROMPTS] * 3)
    assert bench.log_likelihoods(learned)[0] > before + 0.2
    assert all("lora_" in name for name in weights(learned))


def test_full_method_trains_all_weights_against_the_base(bench: Bench) -> None:
    before = bench.log_likelihoods(bench.base())
    full = RECIPE.model_copy(update={"method": "full", "learning_rate": 1e-3})
    learned = bench.learn([*PLAIN, *JUDGED * 2], full)
    wanted, unwanted = bench.log_likelihoods(learned)
    assert wanted - unwanted > before[0] - before[1]
    assert not any("lora_" in name for name in weights(learned))
    first = next(logs for logs in bench.callback.logs if "kto/rewards/margins" in logs)
    assert first["kto/loss"] != 0.5, "the previous step has moved the model away from its reference"
    train.save_adapter(learned, bench.folder / "adapter", "a base")
    with with_adapter(bench.base(), bench.folder / "adapter") as kept:
        assert bench.log_likelihoods(kept) == pytest.approx((wanted, unwanted), abs=0.05)
    files = [path for path in (bench.folder / "adapter").iterdir() if path.suffix == ".json"]
    assert all(str(bench.model.parent) not in path.read_text() for path in files)


def test_each_step_has_one_objective_and_its_rate(bench: Bench) -> None:
    slow = RECIPE.model_copy(update={"preference_rate": 0.1})
    bench.learn(MIXED * 2, slow)
    kinds = [
        next(kind for kind in ("sft", "kto", "dpo") if f"{kind}/loss" in logs) for logs in bench.callback.logs
    ]
    assert kinds == ["sft", "kto", "dpo"] * 4
    rates = {
        kind: max(
            logs["learning_rate"] for k, logs in zip(kinds, bench.callback.logs, strict=True) if k == kind
        )
        for kind in kinds
    }
    # Warm-up: half the rate in the first step, the full rate in the second, then a linear decay.
    assert rates["sft"] == pytest.approx(slow.learning_rate * 9 / 11)
    assert rates["kto"] == pytest.approx(slow.learning_rate * 0.1)
    assert rates["dpo"] == pytest.approx(slow.learning_rate * 0.1 * 10 / 11)


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
    recipe = RECIPE.model_copy(update={"replay_prompts": 2, "replay_new_tokens": 8, "epochs": 2.0})
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
    train.train(context)
    assert {path.name for path in (run / ADAPTER).iterdir()} == set(ADAPTER_FILES)
    order = train.order_rows(
        [train.training_row(context.chat, one) for one in rows],
        [
            [
                train.training_row(context.chat, replace(correction, response_id=one.id))
                for one in base_answers
            ],
            [],
        ],
        recipe,
    )
    times = Counter(one.name.partition("/")[0] for one in order)
    assert {times[one.response_id] for one in rows} == {2}
    assert {times[one.id] for one in base_answers} == {1}
    kinds = [kind for kind, _ in plan_steps([one.fields for one in order], recipe.batch_size)]
    assert Counter(kinds) == {"sft": 3, "kto": 3, "dpo": 1}
    assert "dpo" in kinds[2:5], "spread over the run, not at an end"


@pytest.mark.parametrize("rows", [PLAIN, PAIRS], ids=["sft", "dpo"])
def test_micro_batches_train_the_same_as_whole_batches(
    bench: Bench, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    one = weights(bench.learn(rows))
    other = weights(Bench(bench.model, tmp_path / "pieces").learn(rows, micro_batch_size=2))
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["sft", "kto", "dpo"])
def test_only_the_answer_and_its_end_carry_loss(bench: Bench, kind: str) -> None:
    rows = {"sft": PLAIN, "kto": JUDGED, "dpo": PAIRS}[kind][:2]
    tokenizer = load_tokenizer(bench.model)
    part = bench.parts(rows, bench.adapted())[kind]
    batch = part.data_collator([part.train_dataset[i] for i in range(2)])
    mask = batch["completion_mask"].bool() if kind != "sft" else batch["labels"] != -100
    trained = [tokenizer.decode(ids[one]) for ids, one in zip(batch["input_ids"], mask, strict=True)]
    answers = [
        row[name][0]["content"]
        for name in ("completion", "chosen", "rejected")
        for row in rows
        if name in row
    ]
    assert trained == [f"{answer}<|im_end|>\n" for answer in answers]


@pytest.mark.parametrize("kind", ["sft", "kto", "dpo"])
def test_end_of_a_truncated_answer_is_not_trained(bench: Bench, kind: str) -> None:
    rows = {"sft": PLAIN, "kto": JUDGED, "dpo": PAIRS}[kind][:4]
    truncated = [[False, False], [True, False], [False, True], [True, True]]
    marked = [row | {TRUNCATED: each} for row, each in zip(rows, truncated, strict=True)]
    part = bench.parts(marked, bench.adapted())[kind]
    whole = bench.parts(rows, bench.adapted())[kind]
    end = end_of_turn_ids(load_tokenizer(bench.model))
    answers = {"sft": ["labels"], "kto": ["completion_ids"], "dpo": ["chosen_ids", "rejected_ids"]}[kind]
    for number, column in enumerate(answers):
        for found, other, each in zip(
            part.train_dataset[column], whole.train_dataset[column], truncated, strict=True
        ):
            assert list(other)[-len(end) :] == end
            assert list(found) == list(other)[: -len(end)] if each[number] else list(found) == list(other)
    if kind == "kto":
        kl = [list(ids) for ids in part.train_dataset["KL_completion_ids"]]
        own = [list(ids) for ids in part.train_dataset["completion_ids"]]
        assert kl == [own[3], own[0], own[1], own[2]]


def test_truncated_answers_do_not_teach_to_stop(bench: Bench, tmp_path: Path) -> None:
    """Compare the likelihood of an end of turn after an answer, before and after training."""
    rows = [sft_row(prompt, WANTED) for prompt in PROMPTS] * 16
    recipe = RECIPE.model_copy(update={"learning_rate": 3e-2})

    def end_after(model: Any) -> float:
        tokenizer = load_tokenizer(bench.model)
        prompt = (
            load_chat(bench.model).prompt_ids(PROMPTS[0])
            + tokenizer(WANTED, add_special_tokens=False)["input_ids"]
        )
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1)
        return float(logits[end_of_turn_ids(tokenizer)[0]])

    before = end_after(bench.base())
    truncated = end_after(bench.learn([row | {TRUNCATED: [True, False]} for row in rows], recipe))
    whole = end_after(Bench(bench.model, tmp_path / "whole").learn(rows, recipe))
    assert whole > 2.5 * before
    assert truncated < 1.5 * before


@pytest.mark.parametrize("kind", ["kto", "dpo"])
def test_cpu_loss_and_gradients_equal_trls(bench: Bench, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"kto": JUDGED, "dpo": PAIRS}[kind][:4]

    def step() -> tuple[float, dict[str, torch.Tensor]]:
        set_seed(1)
        model = bench.adapted()
        for name, one in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(one, std=0.05)
        part = bench.parts(rows, model)[kind]
        model.train()
        batch = part.data_collator([part.train_dataset[i] for i in range(len(rows))])
        loss = part.compute_loss(model, batch)
        loss.backward()
        return loss.item(), {n: one.grad for n, one in model.named_parameters() if one.grad is not None}

    ours, our_gradients = step()
    monkeypatch.setattr(train, "add_answers_head", lambda base: None)
    theirs, their_gradients = step()
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(gradient, their_gradients[name], rtol=1e-3, atol=1e-6)


def test_rows_of_a_batch_do_not_attend_to_each_other(bench: Bench) -> None:
    """The loss of a batch is the sum of the losses of its rows, computed separately."""
    model = bench.adapted().train()
    part = bench.parts(PLAIN, model)["sft"]
    rows = [part.train_dataset[i] for i in range(len(PLAIN))]

    def loss(of: list[Any]) -> tuple[float, int]:
        batch = part.data_collator(of)
        answered = int((batch["labels"][:, 1:] != -100).sum())
        return part.compute_loss(model, batch, num_items_in_batch=1).item(), answered

    separate = [loss([one]) for one in rows]
    together = loss(rows)
    assert together[1] == sum(count for _, count in separate)
    assert together[0] == pytest.approx(sum(total for total, _ in separate), rel=1e-5)


def test_row_with_a_too_long_conversation_fails_the_run(bench: Bench) -> None:
    long = sft_row((("user", "word " * 100),), WANTED)
    with pytest.raises(RunFailed, match="cannot be trained"):
        bench.learn([*PLAIN, long], RECIPE.model_copy(update={"max_tokens": 64}))
