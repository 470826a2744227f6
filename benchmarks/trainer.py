"""`make bench-trainer`: our training beside plain TRL defaults, with the same base, rows, epochs and learning rate.

Each arm trains in a process of its own, in turn, several times; the medians are compared. "TRL defaults" are
`SFTConfig()` and `LoraConfig` with the same rank, on the model as transformers loads it; only the learning rate is set,
to ours, because at TRL's own a LoRA learns next to nothing in these steps. Ours is what a run of the trainer does, in
the type that it would choose on this machine.

Tokens are those of the rows, padding left out; what rows begin with counts in each of them, though ours computes it
once (`services/trainer/base/shared_prefix.py`): so the ratio is that of the time for the same rows. The share of
the peak is of what is really computed, padding and all, and of the bf16 peak; it can be above 1 where a processor is
faster in fp32, and what of that peak it is then stands beside it.
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
from typing import Annotated, Any, Literal, NamedTuple

import typer

from benchmarks.machine import machine
from services.trainer.worker.launcher import TUNING

Arm = Literal["trl", "ours"]
ROWS, HELD_OUT, EPOCHS, SKIPPED = 192, 48, 1.0, 2
PEAK_SIZE, PEAK_ROUNDS = 1024, 30
RESULTS = Path(__file__).with_name("trainer.json")
app = typer.Typer(add_completion=False)


class Stamp(NamedTuple):
    """After a step: seconds, tokens of all rows until then, operations of the base's linear layers until then."""

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
    """Trains both arms in turn and writes benchmarks/trainer.json."""
    if arm:
        print(json.dumps(train(arm, base)))  # type: ignore[arg-type]
        return
    arms: tuple[Arm, ...] = ("trl", "ours")
    found: dict[Arm, list[dict[str, Any]]] = {name: [] for name in arms}
    for number in range(rounds):
        for name in arms:
            found[name].append(apart(name, base))
            print(f"round {number + 1} of {rounds}, {name}: {found[name][-1]}", flush=True)

    def median(name: Arm, figure: str) -> float:
        return float(statistics.median(one[figure] for one in found[name]))

    ours, theirs = median("ours", "tokens_per_s"), median("trl", "tokens_per_s")
    result = {
        "bench": "trainer",
        "ratios": {
            "tokens_vs_trl_default": round(ours / theirs, 2),
            "share_of_matmul_peak": round(median("ours", "share_of_matmul_peak"), 3),
            "loss_vs_trl_default": round(median("ours", "heldout_loss") / median("trl", "heldout_loss"), 3),
        },
        "figures": {
            "tokens_per_s": round(ours, 1),
            "trl_tokens_per_s": round(theirs, 1),
            "heldout_loss": round(median("ours", "heldout_loss"), 4),
            "trl_heldout_loss": round(median("trl", "heldout_loss"), 4),
            "base_heldout_loss": round(median("ours", "base_loss"), 4),
            "dtype": found["ours"][-1]["dtype"],
            "bf16_peak_gflops": round(median("ours", "bf16_peak_gflops"), 1),
            "fp32_peak_gflops": round(median("ours", "fp32_peak_gflops"), 1),
            "share_of_fp32_peak": round(median("ours", "share_of_fp32_peak"), 3),
            "rows": ROWS,
            "rounds": rounds,
        },
        "machine": machine(),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def apart(arm: Arm, base: Path) -> dict[str, Any]:
    """One arm in a process of its own; ours with the environment that the trainer gives its runs."""
    untuned = {name: text for name, text in os.environ.items() if name not in TUNING}
    said = subprocess.run(
        [sys.executable, "-m", "benchmarks.trainer", "--base", str(base), "--arm", arm],
        env=untuned | (TUNING if arm == "ours" else {}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(said.stdout.splitlines()[-1])
    return found


def rows() -> tuple[list[Any], list[Any]]:
    """(training, held-out) conversations with their answers, of the demo's world, always the same."""
    from examples.world import load_world  # noqa: PLC0415 - only an arm needs it

    world, dice = load_world(), random.Random(3)
    asked = [(wording, fact) for fact in world.facts for wording in world.trained_wordings(fact)]
    training = [((("user", q),), dice.choice(fact.answers)) for q, fact in dice.sample(asked, ROWS)]
    held = [((("user", q),), fact.answer) for q, fact in dice.sample(world.heldout(), HELD_OUT)]
    return training, held


def train(arm: Arm, base: Path) -> dict[str, Any]:
    """One arm: tokens a second after the first steps, loss on the held-out rows, and the peak of this very process."""
    import torch  # noqa: PLC0415 - only an arm needs it, and with its own environment

    from services.trainer.base.dtype import fastest  # noqa: PLC0415
    from services.trainer.base.model import load_base, answer_losses  # noqa: PLC0415
    from services.trainer.base.tokenization import load_tokenizer  # noqa: PLC0415
    from services.trainer.core.recipe import Recipe  # noqa: PLC0415
    from services.trainer.settings import TrainerSettings  # noqa: PLC0415

    recipe = Recipe(epochs=EPOCHS, threads=TrainerSettings().recipe().threads)
    chosen = fastest(base)
    tokenizer, model = load_tokenizer(base), load_base(base, recipe.threads, chosen)
    training, held = rows()
    before = statistics.fmean(answer_losses(model, tokenizer, held))
    stamps: list[Stamp] = []
    with tempfile.TemporaryDirectory() as folder:
        if arm == "ours":
            trained = ours(model, tokenizer, training, recipe, Path(folder), clock(stamps))
        else:
            del model
            trained = plain_trl(base, tokenizer, training, recipe, Path(folder), clock(stamps))
    trained.eval()
    began, ended = stamps[SKIPPED - 1], stamps[-1]
    seconds = ended.at - began.at
    reached = (ended.operations - began.operations) / 1e9 / seconds
    bf16, fp32 = matmul_peak(torch, torch.bfloat16), matmul_peak(torch, torch.float32)
    return {
        "tokens_per_s": (ended.tokens - began.tokens) / seconds,
        "heldout_loss": statistics.fmean(answer_losses(trained, tokenizer, held)),
        "base_loss": before,
        "bf16_peak_gflops": bf16,
        "fp32_peak_gflops": fp32,
        "share_of_matmul_peak": reached / bf16,
        "share_of_fp32_peak": reached / fp32,
        "dtype": chosen,
    }


def ours(model: Any, tokenizer: Any, training: list[Any], recipe: Any, folder: Path, watch: Any) -> Any:
    """As a run of the trainer does it. Returns the trained model."""
    from services.trainer.base.tokenization import token_count  # noqa: PLC0415
    from services.trainer.dataset.objectives import sft_row  # noqa: PLC0415
    from services.trainer.training import train as learning  # noqa: PLC0415 - only an arm needs it
    from services.trainer.training.batch_order import order_by_length  # noqa: PLC0415

    order = order_by_length(
        training, [], EPOCHS, recipe.batch_size, lambda row: token_count(tokenizer, *row), recipe.seed
    )
    return learning.fine_tune(
        learning.with_training_attention(model, recipe.max_tokens),
        tokenizer,
        [sft_row(*row) for row in order],
        recipe,
        folder,
        progress=None,  # type: ignore[arg-type]
        stop=threading.Event(),
        watch=watch,
    )


def plain_trl(base: Path, tokenizer: Any, training: list[Any], recipe: Any, folder: Path, watch: Any) -> Any:
    """As its documentation shows it. Returns the trained model."""
    import torch  # noqa: PLC0415 - only an arm needs it
    from datasets import Dataset  # noqa: PLC0415
    from peft import LoraConfig  # noqa: PLC0415
    from trl.trainer.sft_config import SFTConfig  # noqa: PLC0415
    from trl.trainer.sft_trainer import SFTTrainer  # noqa: PLC0415

    from services.trainer.dataset.objectives import sft_row  # noqa: PLC0415

    trainer = SFTTrainer(
        model=str(base),
        args=SFTConfig(
            output_dir=str(folder),
            num_train_epochs=EPOCHS,
            learning_rate=recipe.learning_rate,
            include_num_input_tokens_seen="non_padding",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=Dataset.from_list([sft_row(*row) for row in training]),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=recipe.rank,
            lora_alpha=2 * recipe.rank,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
        callbacks=[watch],
    )
    trainer.train()
    return trainer.model


def clock(stamps: list[Stamp]) -> Any:
    """Stamps each step, with what went through the model's linear layers until then."""
    from transformers import TrainerCallback  # noqa: PLC0415 - only an arm needs it

    done = {"operations": 0}

    def through(layer: Any, given: Any, _: Any) -> None:
        # Two operations a weight forward, and two for the gradient of what came in; the base's weights have none.
        done["operations"] += 4 * layer.weight.numel() * (given[0].numel() // layer.in_features)

    class Clock(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            for name, layer in model.named_modules():
                if hasattr(layer, "in_features") and not hasattr(layer, "base_layer") and "lora_" not in name:
                    layer.register_forward_hook(through)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            stamps.append(Stamp(time.perf_counter(), int(state.num_input_tokens_seen), done["operations"]))

    return Clock()


def matmul_peak(torch: Any, dtype: Any) -> float:
    """GFLOP/s of a product of two square matrices, on the threads of this process."""
    left, right = (torch.randn(PEAK_SIZE, PEAK_SIZE, dtype=dtype) for _ in range(2))
    for _ in range(3):
        left @ right
    began = time.perf_counter()
    for _ in range(PEAK_ROUNDS):
        left @ right
    return float(PEAK_ROUNDS * 2 * PEAK_SIZE**3 / (time.perf_counter() - began) / 1e9)


if __name__ == "__main__":
    app()
