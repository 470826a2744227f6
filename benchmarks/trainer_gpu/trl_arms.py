"""Arms of TRL: its default configurations, and what makes it fast."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Final

from peft import LoraConfig
from transformers import TrainerCallback

from benchmarks.trainer_gpu.bench import Bench
from benchmarks.trainer_gpu.clock import Clock
from benchmarks.trainer_gpu.plan import Workload
from services.trainer.base.memory import is_out_of_memory, release_memory
from services.trainer.core.recipe import Recipe

COMMON: Final[dict[str, Any]] = {
    "num_train_epochs": 1000,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
"""Arguments of all of TRL's trainers: they train until the clock stops them."""
TUNED: Final[dict[str, Any]] = {
    "gradient_checkpointing": False,
    "optim": "adamw_torch_fused",
    "logging_steps": 1000,
}
"""What makes them fast, together with Liger's kernels and large batches."""
PACKED: Final[dict[str, Any]] = {"packing": True, "max_length": 1024, "per_device_train_batch_size": 8}
"""Arguments for rows without padding, which need flash attention."""


def train_trl(bench: Bench, workload: Workload, seconds: float) -> dict[str, Any]:
    """Train with TRL. Out of memory, the batch is halved."""
    tuned = bench.arm.name == "trl-tuned"
    batch = workload.batch if tuned else 8
    while True:
        try:
            return _train(bench, workload, seconds, batch, tuned=tuned)
        except Exception as error:
            if not is_out_of_memory(error) or batch < 2:
                raise
        release_memory()  # here no traceback refers to the trainer that failed
        batch //= 2


def _train(bench: Bench, workload: Workload, seconds: float, batch: int, *, tuned: bool) -> dict[str, Any]:
    """Train with TRL: its defaults, or what makes it fast."""
    (kind,) = workload.kinds
    options = COMMON | {"use_cpu": not bench.cuda}
    if tuned:
        options |= TUNED | {"per_device_train_batch_size": batch, "use_liger_kernel": bench.cuda}
    # As TRL loads a base by name: fp32 weights by default, computed in bf16 by autocast.
    base = bench.base("bfloat16" if tuned else "float32")
    if flash := tuned and bench.cuda and kind == "sft" and find_spec("flash_attn") is not None:
        base.set_attn_implementation("flash_attention_2")
        options |= PACKED
    clock = Clock(seconds, bench.warmup_steps)
    texts = bench.texts(workload, batch * (2 if bench.tiny else max(8, 200 // batch)))
    with tempfile.TemporaryDirectory() as output:
        trainer = make_trainer(kind, base, bench.tokenizer, texts, {"output_dir": output, **options}, clock)
        # A pack has as many rows as fit; another batch is a number of rows.
        per_row = (workload.prompt + workload.answer) * (2 if kind == "dpo" else 1)
        rows = trainer.args.per_device_train_batch_size * (len(texts) / len(trainer.train_dataset))
        clock.tokens_of_step = lambda _: per_row * rows
        trainer.train()
    return bench.figures(clock, f"batch {batch}" + (", packed" if flash else ""))


def make_trainer(
    kind: str,
    model: Any,
    tokenizer: Any,
    texts: Sequence[Mapping[str, Any]],
    options: dict[str, Any],
    clock: TrainerCallback,
) -> Any:
    """Return TRL's trainer of an objective, with an adapter of the same rank as the recipe's."""
    # Importing them takes seconds, and only two arms need them.
    from datasets import Dataset  # noqa: PLC0415
    from trl.trainer.dpo_config import DPOConfig  # noqa: PLC0415
    from trl.trainer.dpo_trainer import DPOTrainer  # noqa: PLC0415
    from trl.trainer.kto_config import KTOConfig  # noqa: PLC0415
    from trl.trainer.kto_trainer import KTOTrainer  # noqa: PLC0415
    from trl.trainer.sft_config import SFTConfig  # noqa: PLC0415
    from trl.trainer.sft_trainer import SFTTrainer  # noqa: PLC0415

    classes: dict[str, tuple[Any, Any]] = {
        "sft": (SFTConfig, SFTTrainer),
        "kto": (KTOConfig, KTOTrainer),
        "dpo": (DPOConfig, DPOTrainer),
    }
    config, trainer = classes[kind]
    rank = Recipe().rank
    arguments: Any = {
        "model": model,
        "args": config(**options),
        "train_dataset": Dataset.from_list([make_record(kind, text) for text in texts]),
        "processing_class": tokenizer,
        "peft_config": LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        "callbacks": [clock],
    }
    return trainer(**arguments)


def make_record(kind: str, text: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row in TRL's format for an objective."""

    def turn(role: str, content: str) -> list[dict[str, str]]:
        return [{"role": role, "content": content}]

    prompt, answer = turn("user", text["question"]), turn("assistant", text["answer"])
    match kind:
        case "dpo":
            return {"prompt": prompt, "chosen": answer, "rejected": turn("assistant", text["rejected"])}
        case "kto":
            return {"prompt": prompt, "completion": answer, "label": text["liked"]}
        case _:
            return {"prompt": prompt, "completion": answer}
