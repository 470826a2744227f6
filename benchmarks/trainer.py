"""`make bench-trainer`: the trainer's training compared with TRL's defaults, on the same base, rows and epochs.

Each arm trains in a process of its own, in turn and several times; the medians are compared. The arm `trl` uses
`SFTConfig()` and a `LoraConfig` of the same rank on the model as transformers loads it. Only its learning rate is ours,
because at TRL's default a LoRA adapter learns almost nothing in so few steps. The arm `ours` does what a run of the
trainer does, in the data type that a run would choose on this machine.

Tokens are counted per row, without padding. The prefix that rows share counts in each of them, although ours computes
it only once (`services/trainer/training/packing.py`), so the ratio of tokens per second is the ratio of the time for
the same rows. The share of the matmul peak counts all computed operations, padding included, relative to the bf16
peak. It can exceed 1 on a processor that is faster in fp32; the share of the fp32 peak is reported too.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias, cast

import typer

from benchmarks.machine import machine
from services.trainer.core.chat import Messages
from services.trainer.worker.launcher import TUNING

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

    from services.trainer.core.recipe import Recipe
    from shared.chat_format import ChatFormat

    Model: TypeAlias = PreTrainedModel | PeftModel

ArmName = Literal["trl", "ours"]
ARMS: tuple[ArmName, ...] = ("trl", "ours")
AnsweredConversation = tuple[Messages, str]
TRAINING_ROWS, HELDOUT_ROWS, EPOCHS = 192, 48, 1.0
WARMUP_STEPS = 2
"""Steps that are not timed."""
PEAK_SIZE, PEAK_ROUNDS = 1024, 30
RESULTS = Path(__file__).with_name("trainer.json")
app = typer.Typer(add_completion=False)


class StepTime(NamedTuple):
    """Totals after a step: time in seconds, tokens of the rows, operations of the base's linear layers."""

    at: float
    tokens: int
    operations: int


@app.command()
def main(
    base: Annotated[Path, typer.Option(help="Folder of the base model.")] = Path(
        ".loopwright/models/smollm2-135m-instruct"
    ),
    rounds: Annotated[int, typer.Option(help="How often each arm runs.")] = 3,
    arm: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Train both arms in turn and write benchmarks/trainer.json."""
    if arm:
        print(json.dumps(run_arm(arm, base)))  # type: ignore[arg-type]
        return
    results: dict[ArmName, list[dict[str, Any]]] = {name: [] for name in ARMS}
    for number in range(rounds):
        for name in ARMS:
            results[name].append(run_in_process(name, base))
            print(f"round {number + 1} of {rounds}, {name}: {results[name][-1]}", flush=True)

    def median(name: ArmName, figure: str) -> float:
        return float(statistics.median(result[figure] for result in results[name]))

    ours, trl = median("ours", "tokens_per_s"), median("trl", "tokens_per_s")
    report = {
        "bench": "trainer",
        "ratios": {
            "tokens_vs_trl_default": round(ours / trl, 2),
            "share_of_matmul_peak": round(median("ours", "share_of_matmul_peak"), 3),
            "loss_vs_trl_default": round(median("ours", "heldout_loss") / median("trl", "heldout_loss"), 3),
        },
        "figures": {
            "tokens_per_s": round(ours, 1),
            "trl_tokens_per_s": round(trl, 1),
            "heldout_loss": round(median("ours", "heldout_loss"), 4),
            "trl_heldout_loss": round(median("trl", "heldout_loss"), 4),
            "base_heldout_loss": round(median("ours", "base_loss"), 4),
            "dtype": results["ours"][-1]["dtype"],
            "bf16_peak_gflops": round(median("ours", "bf16_peak_gflops"), 1),
            "fp32_peak_gflops": round(median("ours", "fp32_peak_gflops"), 1),
            "share_of_fp32_peak": round(median("ours", "share_of_fp32_peak"), 3),
            "rows": TRAINING_ROWS,
            "rounds": rounds,
        },
        "machine": machine(),
    }
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


def run_in_process(arm: ArmName, base: Path) -> dict[str, Any]:
    """Run one arm in a process of its own. Only ours gets the environment of a run."""
    environment = {name: value for name, value in os.environ.items() if name not in TUNING}
    completed = subprocess.run(
        [sys.executable, "-m", "benchmarks.trainer", "--base", str(base), "--arm", arm],
        env=environment | (TUNING if arm == "ours" else {}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(completed.stdout.splitlines()[-1])
    return result


def make_rows() -> tuple[list[AnsweredConversation], list[AnsweredConversation]]:
    """Return (training, held-out) conversations with answers from the demo's world. They are always the same."""
    from examples.world import load_world  # noqa: PLC0415 - only an arm needs it

    world, rng = load_world(), random.Random(3)
    asked = [(wording, fact) for fact in world.facts for wording in world.trained_wordings(fact)]
    training: list[AnsweredConversation] = [
        ((("user", question),), rng.choice(fact.answers))
        for question, fact in rng.sample(asked, TRAINING_ROWS)
    ]
    held_out: list[AnsweredConversation] = [
        ((("user", question),), fact.answer) for question, fact in rng.sample(world.heldout(), HELDOUT_ROWS)
    ]
    return training, held_out


def run_arm(arm: ArmName, base: Path) -> dict[str, Any]:
    """Train one arm.

    Returns tokens per second after the warm-up, the loss on held-out rows, and the matmul peak of this process.
    """
    import torch  # noqa: PLC0415 - only an arm needs it, with its own environment

    from services.trainer.base.dtype import fastest  # noqa: PLC0415
    from services.trainer.base.model import answer_losses, load_base  # noqa: PLC0415
    from services.trainer.base.tokenization import load_chat  # noqa: PLC0415
    from services.trainer.core.recipe import Recipe  # noqa: PLC0415
    from services.trainer.settings import TrainerSettings  # noqa: PLC0415

    recipe = Recipe(epochs=EPOCHS, threads=TrainerSettings().recipe().threads)
    dtype = fastest(base)
    chat, model = load_chat(base), load_base(base, recipe.threads, dtype)
    training, held_out = make_rows()
    base_loss = statistics.fmean(answer_losses(model, chat, held_out))
    steps: list[StepTime] = []
    with tempfile.TemporaryDirectory() as folder:
        if arm == "ours":
            trained = train_ours(base, model, chat, training, recipe, Path(folder), step_timer(steps))
        else:
            del model
            trained = train_with_trl_defaults(
                base, chat.tokenizer, training, recipe, Path(folder), step_timer(steps)
            )
    trained.eval()
    start, end = steps[WARMUP_STEPS - 1], steps[-1]
    seconds = end.at - start.at
    gflops = (end.operations - start.operations) / 1e9 / seconds
    bf16_peak, fp32_peak = matmul_peak_gflops(torch.bfloat16), matmul_peak_gflops(torch.float32)
    return {
        "tokens_per_s": (end.tokens - start.tokens) / seconds,
        "heldout_loss": statistics.fmean(answer_losses(trained, chat, held_out)),
        "base_loss": base_loss,
        "bf16_peak_gflops": bf16_peak,
        "fp32_peak_gflops": fp32_peak,
        "share_of_matmul_peak": gflops / bf16_peak,
        "share_of_fp32_peak": gflops / fp32_peak,
        "dtype": dtype,
    }


def train_ours(
    base: Path,
    model: PreTrainedModel,
    chat: ChatFormat,
    training: list[AnsweredConversation],
    recipe: Recipe,
    folder: Path,
    timer: TrainerCallback,
) -> Model:
    """Train as a run of the trainer does, and return the trained model."""
    from services.trainer.base.shape import base_shape  # noqa: PLC0415 - only an arm needs them
    from services.trainer.training.fine_tune import fine_tune  # noqa: PLC0415
    from services.trainer.training.prepare import resolve_recipe  # noqa: PLC0415
    from services.trainer.training.rows import sft_row  # noqa: PLC0415
    from services.trainer.training.step_plan import plan_steps  # noqa: PLC0415

    rows = [
        sft_row(chat, str(number), messages, answer) for number, (messages, answer) in enumerate(training)
    ]
    resolved = resolve_recipe(recipe, base_shape(base), model.dtype.itemsize, rows, [])
    trained: Model = fine_tune(
        model,
        plan_steps(
            rows,
            [],
            tokens_per_step=resolved.tokens_per_step,
            epochs=resolved.epochs,
            seed=resolved.seed,
        ),
        resolved,
        folder,
        callback=timer,
        stop=threading.Event(),
    )
    return trained


def train_with_trl_defaults(
    base: Path,
    tokenizer: PreTrainedTokenizerBase,
    training: list[AnsweredConversation],
    recipe: Recipe,
    folder: Path,
    timer: TrainerCallback,
) -> Model:
    """Train as TRL's documentation shows it, and return the trained model."""
    import torch  # noqa: PLC0415 - only an arm needs them
    from datasets import Dataset  # noqa: PLC0415
    from peft import LoraConfig  # noqa: PLC0415
    from trl.trainer.sft_config import SFTConfig  # noqa: PLC0415
    from trl.trainer.sft_trainer import SFTTrainer  # noqa: PLC0415

    from services.trainer.base.shape import base_shape  # noqa: PLC0415
    from services.trainer.core.resolved_recipe import learning_rate  # noqa: PLC0415
    from services.trainer.dataset.objectives import sft_row  # noqa: PLC0415

    trainer = SFTTrainer(
        model=str(base),
        args=SFTConfig(
            output_dir=str(folder),
            num_train_epochs=EPOCHS,
            learning_rate=learning_rate(recipe, base_shape(base).hidden),
            include_num_input_tokens_seen="non_padding",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=Dataset.from_list([sft_row(messages, answer) for messages, answer in training]),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=recipe.rank,
            lora_alpha=2 * recipe.rank,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
        callbacks=[timer],
    )
    trainer.train()
    return cast("Model", trainer.model)


def step_timer(steps: list[StepTime]) -> TrainerCallback:
    """Return a callback that appends the totals after each step to `steps`."""
    from transformers import TrainerCallback  # noqa: PLC0415 - only an arm needs it

    total = {"operations": 0}

    def count_operations(layer: Any, inputs: tuple[torch.Tensor, ...], _: Any) -> None:
        # Two operations per weight forward, and two for the gradient of the input. The base's weights have no gradient.
        total["operations"] += 4 * layer.weight.numel() * (inputs[0].numel() // layer.in_features)

    class StepTimer(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            for name, layer in model.named_modules():
                if hasattr(layer, "in_features") and not hasattr(layer, "base_layer") and "lora_" not in name:
                    layer.register_forward_hook(count_operations)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            now = time.perf_counter()
            steps.append(StepTime(now, int(state.num_input_tokens_seen), total["operations"]))

    return StepTimer()


def matmul_peak_gflops(dtype: torch.dtype) -> float:
    """Return GFLOP/s of the product of two square matrices with this process's threads."""
    import torch  # noqa: PLC0415 - only an arm needs it

    left, right = (torch.randn(PEAK_SIZE, PEAK_SIZE, dtype=dtype) for _ in range(2))
    for _ in range(3):
        left @ right
    started = time.perf_counter()
    for _ in range(PEAK_ROUNDS):
        left @ right
    return float(PEAK_ROUNDS * 2 * PEAK_SIZE**3 / (time.perf_counter() - started) / 1e9)


if __name__ == "__main__":
    app()
