"""One arm of `benchmarks/trainer_gpu.py`: `python -m benchmarks.trainer_gpu_arm ARM FOLDER`. Imports torch."""

from __future__ import annotations

import json
import random
import string
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import torch
import typer
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, TrainerCallback, set_seed

from benchmarks.trainer_gpu import ARMS, PREFIX, SHAPES, WORKLOADS, Arm, Shape, Workload, tiny_arms
from services.trainer.base.memory import is_out_of_memory, release_memory
from services.trainer.base.model import generate_answers, load_base
from services.trainer.base.shape import shape_of
from services.trainer.base.tokenization import load_chat
from services.trainer.core.hardware import Quantization
from services.trainer.core.recipe import Recipe
from services.trainer.core.resolved_recipe import BaseShape, DataSize, Machine, ResolvedRecipe, resolve
from services.trainer.gate.model_pair import SIDES, ModelPair, score_likelihoods
from services.trainer.training.adapter_files import save_adapter
from services.trainer.training.fine_tune import fine_tune
from services.trainer.training.prepare import resolve_recipe
from services.trainer.training.rows import TokenizedRow
from services.trainer.training.step_plan import plan_steps
from shared.chat_format import ChatFormat

SMALL_MEMORY: Final = 24 * 10**9
"""Bytes of the card that the arm `small` may use."""
PEAKS: Final = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}
"""Dense bf16 operations per second by the vendor's data sheet, by a part of the card's name."""
WARMUP_STEPS: Final = 4
"""Steps that are not timed: kernels are compiled in them."""
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-2, 5e-2
"""Relative difference from fp32 that the numerical check allows."""
TEMPLATE: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def main(
    label: Annotated[str, typer.Argument(help="The arm, such as ours/7b.")],
    folder: Annotated[Path, typer.Argument(help="Folder for files that arms share.")],
    until: Annotated[float, typer.Option(help="When the arm should end, in seconds since 1970.")] = 0.0,
    tiny: Annotated[bool, typer.Option(help="Use a tiny base and few rows.")] = False,
) -> None:
    """Run one arm and print a line of JSON for each data set."""
    (arm,) = [one for one in (tiny_arms() if tiny else ARMS) if one.label == label]
    run_arm(arm, until, folder, tiny=tiny)


def run_arm(arm: Arm, until: float, folder: Path, *, tiny: bool) -> None:
    """Run an arm and print a line for each data set. An error ends a data set, not the arm."""
    runner = ArmRunner(arm, folder, tiny=tiny)
    for number, workload in enumerate(arm.workloads):
        share = (until - time.time()) / (len(arm.workloads) - number)
        try:
            figures = runner.run(workload, 0.3 if tiny else max(3.0, 0.6 * share))
        except Exception as error:  # noqa: BLE001 - whatever fails is the result
            figures = {"error": f"{type(error).__name__}: {error}"[:400]}
        print(PREFIX + json.dumps({"workload": workload, **figures}), flush=True)
        release_memory()


class ArmRunner:
    """Runs the data sets of one arm on one base."""

    def __init__(self, arm: Arm, folder: Path, *, tiny: bool) -> None:

        self.arm, self.folder, self.tiny = arm, folder, tiny
        self.cuda = torch.cuda.is_available()
        self.device = "cuda" if self.cuda else "cpu"
        self.card = torch.cuda.get_device_name() if self.cuda else "cpu"
        self.shape = SHAPES[arm.base]
        self.tokenizer = make_tokenizer()
        self.chat = ChatFormat(self.tokenizer)
        self.warmup_steps = 1 if tiny else WARMUP_STEPS

    def run(self, workload: str, seconds: float) -> dict[str, Any]:
        """Return the figures of one data set."""
        if self.arm.name == "check":
            figures = self.check()
        elif self.arm.name == "small-gate":
            figures = self.gate()
        elif self.arm.name == "small-train":
            figures = self.train_small(WORKLOADS[workload], seconds)
        elif self.arm.name == "ours":
            figures = self.train_ours(WORKLOADS[workload], seconds, lambda: self.base("bfloat16"))
        else:
            figures = self.train_trl(WORKLOADS[workload], seconds)
        return {"card": self.card, **figures}

    # --- bases and rows ---

    def base(self, dtype: str) -> Any:
        """Return a new base on the device."""
        return make_base(self.shape, dtype, self.device)

    def rows(self, workload: Workload, count: int) -> list[TokenizedRow]:
        """Return the rows of a data set as a run has them."""
        return [
            TokenizedRow(
                str(number),
                one["kind"],
                tuple(self.chat.prompt_ids((("user", one["question"]),))),
                tuple(self.chat.answer_ids(one["answer"])),
                tuple(self.chat.answer_ids(one["rejected"])) if one["kind"] == "dpo" else (),
                one["liked"],
            )
            for number, one in enumerate(self.texts(workload, count))
        ]

    def texts(self, workload: Workload, count: int) -> list[dict[str, Any]]:
        """Return questions and answers of random letters. Each is one token, so rows have exact sizes."""
        rng = random.Random(7)
        prompt = workload.prompt - len(self.chat.prompt_ids((("user", ""),)))
        answer = workload.answer - len(self.chat.answer_ids(""))

        def text(length: int) -> str:
            return "".join(rng.choices(string.ascii_letters, k=length))

        return [
            {
                "kind": workload.kinds[number % len(workload.kinds)],
                "question": text(prompt),
                "answer": text(answer),
                "rejected": text(answer),
                "liked": bool(number // len(workload.kinds) % 2),
            }
            for number in range(count)
        ]

    # --- arms ---

    def train_ours(
        self, workload: Workload, seconds: float, load: Callable[[], Any], **settings: Any
    ) -> dict[str, Any]:
        """Train as a run does: derive what the settings leave open, then load the base and train it."""
        rows = self.rows(workload, 48 if self.tiny else workload.rows)
        shape = shape_of(make_config(self.shape).to_dict(), weights_of(self.shape))
        resolved = resolve_recipe(Recipe(**settings), shape, 2, rows, [])
        steps = plan_steps(
            rows, [], tokens_per_step=resolved.tokens_per_step, epochs=resolved.epochs, seed=resolved.seed
        )
        clock = Clock(seconds, self.warmup_steps)
        clock.tokens_of_step = lambda step: sum(row.tokens for row in steps[step - 1])
        with tempfile.TemporaryDirectory() as checkpoints:
            trained = fine_tune(
                load(), steps, resolved, Path(checkpoints), callback=clock, stop=threading.Event()
            )
        if self.arm.name == "small-train":
            save_adapter(trained, self.folder / "adapter", "base")
        return self.figures(clock, notes_of(resolved))

    def train_trl(self, workload: Workload, seconds: float) -> dict[str, Any]:
        """Train with TRL. Out of memory, the batch is halved."""
        tuned = self.arm.name == "trl-tuned"
        batch = workload.batch if tuned else 8
        while True:
            try:
                return self.train_trl_with(workload, seconds, batch, tuned=tuned)
            except Exception as error:
                if not is_out_of_memory(error) or batch < 2:
                    raise
            release_memory()  # here no traceback refers to the trainer that failed
            batch //= 2

    def train_trl_with(
        self, workload: Workload, seconds: float, batch: int, *, tuned: bool
    ) -> dict[str, Any]:
        """Train with TRL: its defaults, or what makes it fast."""
        (kind,) = workload.kinds
        options: dict[str, Any] = {
            "num_train_epochs": 1000,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": not self.cuda,
        }
        if tuned:
            options |= {
                "per_device_train_batch_size": batch,
                "gradient_checkpointing": False,
                "use_liger_kernel": self.cuda,
                "optim": "adamw_torch_fused",
                "logging_steps": 1000,
            }
        # As TRL loads a base by name: fp32 weights by default, computed in bf16 by autocast.
        base = self.base("bfloat16" if tuned else "float32")
        if flash := tuned and self.cuda and kind == "sft" and find_spec("flash_attn") is not None:
            base.set_attn_implementation("flash_attention_2")
            options |= {"packing": True, "max_length": 1024, "per_device_train_batch_size": 8}
        lora = LoraConfig(
            r=Recipe().rank, lora_alpha=2 * Recipe().rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        clock = Clock(seconds, self.warmup_steps)
        texts = self.texts(workload, batch * (2 if self.tiny else max(8, 200 // batch)))
        with tempfile.TemporaryDirectory() as output:
            trainer = make_trl_trainer(
                kind, base, self.tokenizer, texts, lora, {"output_dir": output, **options}, clock
            )
            # A pack has as many rows as fit; another batch is a number of rows.
            per_row = (workload.prompt + workload.answer) * (2 if kind == "dpo" else 1)
            rows = trainer.args.per_device_train_batch_size * (len(texts) / len(trainer.train_dataset))
            clock.tokens_of_step = lambda _: per_row * rows
            trainer.train()
        return self.figures(clock, f"batch {batch}" + (", packed" if flash else ""))

    def train_small(self, workload: Workload, seconds: float) -> dict[str, Any]:
        """Write the base to disk, then train within `SMALL_MEMORY` with 4-bit weights, as a run on a small card."""
        limit_memory()
        path = self.folder / "base"
        self.base("bfloat16").save_pretrained(path)
        self.tokenizer.save_pretrained(path)
        release_memory()
        quantization: Quantization = "4bit" if self.cuda else "none"

        def load() -> Any:
            return load_base(path, 1, "bfloat16", quantization)

        return self.train_ours(workload, min(seconds, 8.0), load, quantization=quantization)

    def gate(self) -> dict[str, Any]:
        """Answer and score with base and adapter, as the gate does, within `SMALL_MEMORY`."""
        limit_memory()
        path = self.folder / "base"
        chat = load_chat(path)
        base = load_base(path, 1, "bfloat16", "4bit" if self.cuda else "none")
        texts = self.texts(WORKLOADS["short"], 8 if self.tiny else 64)
        conversations = [(("user", one["question"]),) for one in texts]
        started = time.perf_counter()
        with ModelPair(base, {"candidate": self.folder / "adapter", "stable": None}) as models:
            for side in SIDES:
                with models.activate(side) as model:
                    answers = generate_answers(model, chat, conversations, 4 if self.tiny else 40)
            scores = score_likelihoods(
                models,
                chat,
                [(messages, one["answer"]) for messages, one in zip(conversations, texts, strict=True)],
            )
        seconds = time.perf_counter() - started
        changed = sum(one.candidate_nll != one.stable_nll for one in scores)
        if len(answers) != len(texts) or not changed:
            raise RuntimeError(f"{len(answers)} answers, and {changed} likelihoods that the adapter changes")
        return {"seconds": round(seconds, 1), "notes": f"gate in {seconds:.0f} s", **self.peak()}

    def check(self) -> dict[str, Any]:
        """Compare two steps in bfloat16, packed, with two steps in fp32 with each row by itself."""
        rows = self.rows(Workload(80, 40, 0, ("sft", "kto", "dpo"), 0), 24)
        steps = [tuple(rows[:12]), tuple(rows[12:])]
        exact = make_base(self.shape, "float32", self.device)
        rounded = make_base(self.shape, "bfloat16", self.device)
        rounded.load_state_dict(exact.state_dict())
        exact.load_state_dict({name: one.float() for name, one in rounded.state_dict().items()})
        wanted = two_steps(exact, steps, micro_batch_tokens=1, fused_kernels=False)
        found = two_steps(rounded, steps, micro_batch_tokens=100_000)
        losses = [
            abs(one - other) / abs(other) for one, other in zip(found.losses, wanted.losses, strict=True)
        ]
        gradients = [
            float((one - other).norm() / other.norm())
            for one, other in zip(found.gradients, wanted.gradients, strict=True)
        ]
        passed = max(losses) <= LOSS_TOLERANCE and max(gradients) <= GRADIENT_TOLERANCE
        finite = all(bool(torch.isfinite(one).all()) for one in found.gradients)
        return {
            "passed": passed and finite and len(gradients) == len(steps),
            "loss_differences": [float(f"{one:.2g}") for one in losses],
            "gradient_differences": [float(f"{one:.2g}") for one in gradients],
            "notes": f"losses within {max(losses):.1e}, gradients within {max(gradients):.1e}",
        }

    # --- figures ---

    def figures(self, clock: Clock, notes: str) -> dict[str, Any]:
        """Return the figures of a training."""
        tokens_per_s = clock.tokens / clock.seconds
        peak = next((value for name, value in PEAKS.items() if name in self.card), None)
        operations = 4 * weights_of(self.shape) * tokens_per_s
        return {
            "tokens_per_s": round(tokens_per_s, 1),
            "utilisation": round(operations / peak, 3) if peak else None,
            "busy": clock.busy,
            "steps": clock.steps,
            "seconds": round(clock.seconds, 2),
            "notes": notes,
            **self.peak(),
        }

    def peak(self) -> dict[str, float]:
        """Return the most memory that tensors took, and that torch held."""
        if not self.cuda:
            return {}
        return {
            "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
            "reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2),
        }


class Clock(TrainerCallback):
    """Times the steps after a warm-up, and stops the training after `limit_s` of them.

    Attributes:
        tokens_of_step: Returns the tokens of the rows of a step.
        tokens: Tokens of the timed steps.
        seconds: Their time.
        steps: Their number.
        busy: Share of the time in which the GPU computed anything, in percent, as its driver says; None if unknown.

    """

    def __init__(self, limit_s: float, warmup_steps: int) -> None:
        self.tokens_of_step: Callable[[int], float] = lambda _: 0.0
        self.tokens = self.seconds = 0.0
        self.steps = 0
        self.busy: float | None = None
        self._limit_s, self._warmup_steps = limit_s, warmup_steps
        self._started = 0.0
        self._stopped = threading.Event()
        self._busy: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Forget the memory of earlier trainings."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count a step, and stop if it is time."""
        control.should_save = False
        if not self._started:
            if state.global_step >= self._warmup_steps:
                self._started = synchronized_time()
                threading.Thread(target=self._watch, daemon=True).start()
            return
        self.steps += 1
        self.tokens += self.tokens_of_step(state.global_step)
        # The process is ahead of the GPU by less than a step.
        control.should_training_stop |= time.perf_counter() - self._started >= self._limit_s
        if control.should_training_stop or state.global_step >= state.max_steps:
            self.seconds = synchronized_time() - self._started

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop watching the GPU. Raises `RuntimeError` if no step was timed."""
        self._stopped.set()
        if not self.seconds:
            raise RuntimeError(f"no step was timed: {state.global_step} of {state.max_steps} steps")
        self.busy = round(sum(self._busy) / len(self._busy), 1) if self._busy else None

    def _watch(self) -> None:
        with suppress(Exception):  # not every driver tells it
            while torch.cuda.is_available() and not self._stopped.wait(0.25):
                self._busy.append(float(torch.cuda.utilization()))


def synchronized_time() -> float:
    """Wait for the GPU, and return the time in seconds."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


# --- parts of an arm --------------------------------------------------------------------------------------------


def make_tokenizer() -> Any:
    """Return a tokenizer with one token per byte, and a chat template in the style of ChatML."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=TEMPLATE,
    )


def make_config(shape: Shape) -> Any:
    """Return the configuration of a base."""
    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=256,
        pad_token_id=257,
        dtype="bfloat16",
    )


def weights_of(shape: Shape) -> int:
    """Return the number of weights of a base, whose head is its embeddings."""
    keys = shape.hidden // shape.heads * shape.key_heads
    layer = 2 * shape.hidden * (shape.hidden + keys) + 3 * shape.hidden * shape.intermediate
    return shape.layers * layer + shape.vocabulary * shape.hidden


def make_base(shape: Shape, dtype: str, device: str) -> Any:
    """Return a base with random weights, made on the device."""
    set_seed(11)
    auto: Any = AutoModelForCausalLM
    with torch.device(device):
        model = auto.from_config(make_config(shape), dtype=getattr(torch, dtype))
    return model.to(device).eval()


def limit_memory() -> None:
    """Let this process use `SMALL_MEMORY` of the card."""
    if torch.cuda.is_available():
        total = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, SMALL_MEMORY / total))


def make_trl_trainer(
    kind: str,
    model: Any,
    tokenizer: Any,
    texts: Sequence[Mapping[str, Any]],
    lora: Any,
    options: dict[str, Any],
    clock: TrainerCallback,
) -> Any:
    """Return TRL's trainer of an objective."""
    # Importing them takes seconds, and only two arms need them.
    from datasets import Dataset  # noqa: PLC0415
    from trl.trainer.dpo_config import DPOConfig  # noqa: PLC0415
    from trl.trainer.dpo_trainer import DPOTrainer  # noqa: PLC0415
    from trl.trainer.kto_config import KTOConfig  # noqa: PLC0415
    from trl.trainer.kto_trainer import KTOTrainer  # noqa: PLC0415
    from trl.trainer.sft_config import SFTConfig  # noqa: PLC0415
    from trl.trainer.sft_trainer import SFTTrainer  # noqa: PLC0415

    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    records = [
        {
            "prompt": turn("user", one["question"]),
            **(
                {
                    "chosen": turn("assistant", one["answer"]),
                    "rejected": turn("assistant", one["rejected"]),
                }
                if kind == "dpo"
                else {"completion": turn("assistant", one["answer"])}
            ),
            **({"label": one["liked"]} if kind == "kto" else {}),
        }
        for one in texts
    ]
    classes: dict[str, tuple[Any, Any]] = {
        "sft": (SFTConfig, SFTTrainer),
        "kto": (KTOConfig, KTOTrainer),
        "dpo": (DPOConfig, DPOTrainer),
    }
    config, trainer = classes[kind]
    arguments: Any = {
        "model": model,
        "args": config(**options),
        "train_dataset": Dataset.from_list(records),
        "processing_class": tokenizer,
        "peft_config": lora,
        "callbacks": [clock],
    }
    return trainer(**arguments)


def notes_of(resolved: ResolvedRecipe) -> str:
    """Return what was derived for a run."""
    checkpointed = ", checkpointing" if resolved.gradient_checkpointing else ""
    quantized = ", 4-bit" if resolved.quantization == "4bit" else ""
    return f"{resolved.tokens_per_step} tokens per step{checkpointed}{quantized}"


class TwoSteps(NamedTuple):
    """Losses and gradients of two steps."""

    losses: list[float]
    gradients: list[Any]


def two_steps(model: Any, steps: Sequence[tuple[TokenizedRow, ...]], **settings: Any) -> TwoSteps:
    """Train two steps and return the losses and the gradients of the adapter."""
    seen = TwoSteps([], [])

    class Record(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            trained = [one.grad for one in given["model"].parameters() if one.grad is not None]
            seen.gradients.append(torch.cat([one.flatten().float() for one in trained]))

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_log = True

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in (logs or {}):
                seen.losses.append(float(logs["loss"]))

    shape = BaseShape(hidden=256, intermediate=512, layers=2, vocabulary=1024, context=4096, weights=10**7)
    machine = Machine(device="cpu", memory=2**34, weight_bytes=4)
    recipe = Recipe(learning_rate=1e-4, max_grad_norm=0.0, **settings)
    resolved = resolve(recipe, shape, machine, DataSize(rows=24, tokens=2880, longest=240))
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(model, steps, resolved, Path(folder), callback=Record(), stop=threading.Event())
    return seen


if __name__ == "__main__":
    typer.run(main)
