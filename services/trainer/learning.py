"""A fresh LoRA adapter on the pinned base, by TRL: resumable at any step (`checkpoints.py`)."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog
from datasets import Dataset
from peft import LoraConfig
from transformers import set_seed
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from services.trainer import data_card, snapshot
from services.trainer.checkpoints import CHECKPOINTS, Watch, newest_checkpoint
from services.trainer.curriculum import mixed, ordered
from services.trainer.model import device, load_base
from services.trainer.objectives import Messages, sft
from services.trainer.progress import Progress
from services.trainer.replay import REPLAY, shipped, whole_sentences
from services.trainer.settings import Recipe
from services.trainer.sft import CpuSFTTrainer
from services.trainer.store import sync_folder, write_whole
from services.trainer.tokens import token_count
from services.trainer.work import ADAPTER, RunFailed, Stopped, Work

WARMUP_STEPS = 5
PLAIN_ATTENTION_TOKENS = 1024
"""Its memory grows with the square of the length."""
Pair = tuple[Messages, str]
"""A conversation and its answer."""
log = structlog.get_logger(__name__)


def train(work: Work) -> None:
    """Writes the adapter. Raises `RunFailed` or `Stopped`."""
    recipe = work.config.recipe
    rows = [one.row for one in snapshot.read_rows(work.folder)]
    if not rows:
        raise RunFailed("the snapshot is empty")
    replayed: list[Pair] = [
        (one.messages, whole_sentences(one.answer))
        for one in work.base_says(shipped(REPLAY, recipe.replay_prompts))
        if whole_sentences(one.answer)
    ]

    def tokens(pair: Pair) -> int:
        return token_count(work.tokenizer, *pair)

    corrections: list[Pair] = [(row.messages, row.answer) for row in rows]
    total = round(sum(map(tokens, corrections)) * recipe.epochs)
    chosen = [replayed[i] for i in mixed(total, [tokens(pair) for pair in replayed], recipe.replay_share)]
    data_card.note_replay(work.folder, len(chosen), sum(map(tokens, chosen)), total)
    order = ordered(corrections, chosen, recipe.epochs, recipe.batch_size, tokens, recipe.seed)
    log.info("training", corrections=len(rows), replay=len(chosen), rows=len(order))
    model = learn(
        for_training(load_base(Path(work.config.base), recipe.threads), recipe.max_tokens),
        work.tokenizer,
        [sft(*pair) for pair in order],
        recipe,
        work.folder / CHECKPOINTS,
        progress=work.progress,
        stop=work.stop,
    )
    save_adapter(model, work.folder / ADAPTER, work.config.base_name)
    shutil.rmtree(work.folder / CHECKPOINTS, ignore_errors=True)


def learn(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[dict[str, Any]],
    recipe: Recipe,
    folder: Path,
    *,
    progress: Progress,
    stop: threading.Event,
) -> Any:
    """Trains on `pairs` (`objectives.sft`) once, in their order; returns the model with its adapter. Checkpoints lie in
    `folder`. Raises `RunFailed` (the loss became NaN or infinite) or `Stopped`."""
    set_seed(recipe.seed)
    tokenizer.padding_side = "right"
    kind = SFTTrainer if device() == "cuda" else CpuSFTTrainer
    trainer = kind(
        model=model,
        args=arguments(folder, recipe),
        train_dataset=Dataset.from_list(list(pairs)),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=recipe.rank,
            lora_alpha=2 * recipe.rank,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
        callbacks=[Watch(progress, stop)],
    )
    trainer.train(resume_from_checkpoint=newest_checkpoint(folder))
    if stop.is_set():
        raise Stopped("training was asked to stop")
    return trainer.model


def for_training(base: Any, max_tokens: int) -> Any:
    """On a CPU, PyTorch's fused attention is slow backwards; for rows that are not long the plain one is faster."""
    if device() == "cpu" and max_tokens <= PLAIN_ATTENTION_TOKENS:
        base.set_attn_implementation("eager")
    return base


def arguments(folder: Path, recipe: Recipe) -> SFTConfig:
    """What differs from TRL's defaults was measured faster on a CPU, and no worse: base in bf16, no autocast, no
    recomputation, batches of like length."""
    cuda = device() == "cuda"
    return SFTConfig(
        output_dir=str(folder),
        # The epochs are in the order of the rows (`curriculum.py`).
        num_train_epochs=1,
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=WARMUP_STEPS,
        max_length=recipe.max_tokens,
        completion_only_loss=True,
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        logging_steps=1,
        include_num_input_tokens_seen="non_padding",
        save_strategy="steps",
        save_steps=recipe.checkpoint_steps,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        seed=recipe.seed,
        data_seed=recipe.seed,
    )


def save_adapter(model: Any, target: Path, base_name: str) -> None:
    """Weights and configuration alone, naming the base and no path of this machine; complete, then there."""
    staging = target.with_name(f".{target.name}.incoming")
    shutil.rmtree(staging, ignore_errors=True)
    model.save_pretrained(staging, safe_serialization=True)
    config = json.loads((staging / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = base_name
    write_whole(
        staging / "adapter_config.json", (json.dumps(config, indent=1, sort_keys=True) + "\n").encode()
    )
    # PEFT writes a model card of its own, with the path of the base in it.
    (staging / "README.md").unlink(missing_ok=True)
    staging.rename(target)
    sync_folder(target.parent)
