"""A fresh LoRA adapter on the pinned base, by TRL: resumable at any step (`checkpoints.py`)."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from transformers import TrainerCallback, TrainingArguments, set_seed
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from services.trainer.base import dtype
from services.trainer.base.base_answers import REPLAY_PROMPTS, BaseAnswer, shipped_prompts
from services.trainer.base.model import default_device, load_base
from services.trainer.base.tokenization import token_count
from services.trainer.core.recipe import Recipe
from services.trainer.dataset import data_card, snapshot
from services.trainer.dataset.filters import Row
from services.trainer.dataset.objectives import (
    Objective,
    TrlRow,
    dpo_row,
    kto_row,
    kto_weights,
    objective_of,
    sft_row,
)
from services.trainer.files import sync_folder, sync_tree, write_whole
from services.trainer.progress import Progress
from services.trainer.run import micro_batch
from services.trainer.run.context import RunContext, RunFailed, RunStopped
from services.trainer.run.folder import ADAPTER, CHECKPOINTS
from services.trainer.training.batch_order import (
    interleave,
    order_by_length,
    order_judged,
    select_replay,
    split_batches,
)
from services.trainer.training.checkpoints import RunCallback, newest_checkpoint
from services.trainer.training.cpu.sft_trainer import CpuSFTTrainer
from services.trainer.training.lora import lora_config
from services.trainer.training.multi_objective_trainer import (
    MultiObjectiveTrainer,
    add_answers_head,
    plan_steps,
)
from services.trainer.training.truncated_answers import TRUNCATED, TruncatedAnswersMixin

PLAIN_ATTENTION_TOKENS = 1024
"""Its memory grows with the square of the length."""
log = structlog.get_logger(__name__)


class Sft(TruncatedAnswersMixin, SFTTrainer):
    """TRL's trainers, each without the ends of answers that were stopped."""


class CpuSft(TruncatedAnswersMixin, CpuSFTTrainer): ...


class Kto(TruncatedAnswersMixin, KTOTrainer): ...


class Dpo(TruncatedAnswersMixin, DPOTrainer): ...


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """A row as TRL takes it, the name of the feedback behind it, and its tokens."""

    name: str
    fields: dict[str, Any]
    tokens: int


def train(work: RunContext) -> None:
    """Writes the adapter. Raises `RunFailed` or `Stopped`."""
    recipe = work.config.recipe
    rows = [one.row for one in snapshot.read_rows(work.folder)]
    if not rows:
        raise RunFailed("the snapshot is empty")
    replayed = [
        _replay(work.tokenizer, one)
        for one in work.base_answers(shipped_prompts(REPLAY_PROMPTS, recipe.replay_prompts))
        if one.answer
    ]
    replayed = [one for one in replayed if one.tokens <= recipe.max_tokens]
    told = [training_row(work.tokenizer, row) for row in rows]
    total = round(sum(one.tokens for one in told) * recipe.epochs)
    chosen = [
        replayed[i] for i in select_replay(total, [one.tokens for one in replayed], recipe.replay_share)
    ]
    data_card.record_replay(work.folder, len(chosen), sum(one.tokens for one in chosen), total)
    order = order_rows(told, chosen, recipe)
    log.info("training", rows=len(rows), replay=len(chosen), order=len(order))
    places = [of_step for _, of_step in plan_steps([one.fields for one in order], recipe.batch_size)]
    watch = RunCallback(
        work.progress,
        work.stop,
        work.folder,
        lambda step: [order[i].name for i in places[step - 1]],
        micro_batch.reduction_note(work.folder, recipe.batch_size),
    )
    base = load_base(Path(work.config.base), recipe.threads, dtype.of_run(work.folder))
    model = fine_tune(
        with_training_attention(base, recipe.max_tokens),
        work.tokenizer,
        [one.fields for one in order],
        recipe,
        work.folder / CHECKPOINTS,
        progress=work.progress,
        stop=work.stop,
        watch=watch,
        piece=micro_batch.size(work.folder, recipe.batch_size),
    )
    save_adapter(model, work.folder / ADAPTER, work.config.base_name)
    shutil.rmtree(work.folder / CHECKPOINTS, ignore_errors=True)


def training_row(tokenizer: Any, row: Row) -> TrainingRow:
    """What a verified row trains, by its objective."""
    fields: TrlRow
    tokens = token_count(tokenizer, row.messages, row.answer)
    match row.objective:
        case "dpo":
            tokens += token_count(tokenizer, row.messages, row.original)
            fields = dpo_row(row.messages, row.answer, row.original)
        case "kto":
            fields = kto_row(row.messages, row.answer, bool(row.label))
        case "sft":
            fields = sft_row(row.messages, row.answer)
    return TrainingRow(row.identity, fields | {TRUNCATED: [row.unended, row.original_unended]}, tokens)


def _replay(tokenizer: Any, said: BaseAnswer) -> TrainingRow:
    fields = sft_row(said.messages, said.answer) | {TRUNCATED: [not said.ended, False]}
    return TrainingRow(f"replay/{said.id}", fields, token_count(tokenizer, said.messages, said.answer))


def order_rows(
    rows: Sequence[TrainingRow], replay: Sequence[TrainingRow], recipe: Recipe
) -> list[TrainingRow]:
    """All rows of a run as they train: each objective in its own order, its batches spread over the run. A function of
    its arguments, so that a resumed run goes on in the same order."""
    parts: dict[Objective, list[TrainingRow]] = {"sft": [], "kto": [], "dpo": []}
    for one in rows:
        parts[objective_of(one.fields)].append(one)
    size, epochs, seed = recipe.batch_size, recipe.epochs, recipe.seed
    labelled: dict[bool, list[TrainingRow]] = {True: [], False: []}
    for one in parts["kto"]:
        labelled[one.fields["label"]].append(one)
    orders = [
        order_by_length(parts["sft"], replay, epochs, size, lambda one: one.tokens, seed),
        order_judged(labelled[True], labelled[False], epochs, seed),
        order_by_length(parts["dpo"], [], epochs, size, lambda one: one.tokens, seed),
    ]
    return [one for batch in interleave([split_batches(order, size) for order in orders]) for one in batch]


def fine_tune(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    recipe: Recipe,
    folder: Path,
    *,
    progress: Progress,
    stop: threading.Event,
    watch: TrainerCallback | None = None,
    piece: int | None = None,
) -> Any:
    """Trains on `rows` (`objectives.sft`, `kto`, `dpo`; with `UNENDED` where an answer was stopped) once, in their
    order, and returns the model, with its adapter where the recipe makes one. A step trains `batch_size` rows of one
    objective, or what is left of it before a row of another comes; `piece` of them at a time (default: all).
    Checkpoints lie in `folder`. Raises `RunFailed` (the loss became NaN or infinite; a row is too long), `Stopped`."""
    set_seed(recipe.seed)
    tokenizer.padding_side = "right"
    plan = [(kind, len(places)) for kind, places in plan_steps(rows, recipe.batch_size)]
    model = get_peft_model(model, lora_config(recipe)) if recipe.method == "lora" else model.float()
    parts = objective_trainers(model, tokenizer, rows, recipe, folder, piece or recipe.batch_size)
    try:
        trainer = MultiObjectiveTrainer(
            plan,
            parts,
            {"sft": 1.0, "kto": recipe.preference_rate, "dpo": recipe.preference_rate},
            piece or recipe.batch_size,
            model=model,
            args=TrainingArguments(
                **_common(folder, recipe)
                | {"per_device_train_batch_size": 1, "remove_unused_columns": False}
                | {"include_num_input_tokens_seen": "no"}
            ),
            processing_class=tokenizer,
            callbacks=[watch or RunCallback(progress, stop)],
        )
    except ValueError as error:
        raise RunFailed(f"the rows cannot be trained: {error}") from error
    trainer.train(resume_from_checkpoint=newest_checkpoint(folder))
    if stop.is_set():
        raise RunStopped("training was asked to stop")
    return trainer.model


def objective_trainers(
    model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]], recipe: Recipe, folder: Path, piece: int
) -> dict[Objective, Any]:
    """A TRL trainer for each objective that `rows` have. They tokenise, and give the losses; none of them trains."""
    told: dict[Objective, list[Mapping[str, Any]]] = {}
    for row in rows:
        told.setdefault(objective_of(row), []).append({TRUNCATED: [False, False], **row})
    # KTO pairs each conversation with a neighbour's answer: within the pieces that are taken at a time.
    common = _common(folder, recipe) | {"per_device_train_batch_size": piece, "max_length": recipe.max_tokens}
    # Without an adapter to turn off, the reference is measured before the first step.
    reference: dict[str, Any] = {"precompute_ref_log_probs": recipe.method == "full"}
    parts: dict[Objective, Any] = {}
    for kind, theirs in told.items():
        trainer, args = _loss(kind, theirs, recipe, folder, common | reference)
        parts[kind] = trainer(
            model=model, args=args, train_dataset=Dataset.from_list(theirs), processing_class=tokenizer
        )
        if "ref" in getattr(model, "peft_config", ()):
            # TRL's copy of a fresh adapter; without it the reference is the base with the adapter off: the same.
            model.delete_adapter("ref")
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if default_device() == "cuda":
        add_fused_lm_head(base, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    else:
        add_answers_head(base)
    return parts


def _loss(
    kind: Objective, rows: Sequence[Mapping[str, Any]], recipe: Recipe, folder: Path, common: dict[str, Any]
) -> tuple[Any, Any]:
    """TRL's trainer of an objective, and its arguments."""
    match kind:
        case "sft":
            return (Sft if default_device() == "cuda" else CpuSft), sft_arguments(folder, recipe)
        case "kto":
            labels = [row["label"] for row in rows]
            liked, disliked = kto_weights(labels.count(True), labels.count(False))
            return Kto, KTOConfig(
                **common, beta=recipe.kto_beta, desirable_weight=liked, undesirable_weight=disliked
            )
        case "dpo":
            return Dpo, DPOConfig(
                **common,
                beta=recipe.dpo_beta,
                loss_type=["sigmoid", "sft"],
                loss_weights=[1.0, recipe.dpo_nll],
            )


def with_training_attention(base: Any, max_tokens: int) -> Any:
    """On a CPU, PyTorch's fused attention is slow backwards; for rows that are not long the plain one is faster."""
    if default_device() == "cpu" and max_tokens <= PLAIN_ATTENTION_TOKENS:
        base.set_attn_implementation("eager")
    return base


def sft_arguments(folder: Path, recipe: Recipe) -> SFTConfig:
    """Of SFT's loss."""
    return SFTConfig(**_common(folder, recipe), max_length=recipe.max_tokens, completion_only_loss=True)


def _common(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """What differs from TRL's defaults was measured faster on a CPU, and no worse: one type throughout (`dtype.py`), no
    autocast, no recomputation, batches of like length."""
    cuda = default_device() == "cuda"
    return {
        "output_dir": str(folder),
        # The epochs are in the order of the rows (`batch_order.py`).
        "num_train_epochs": 1,
        "per_device_train_batch_size": recipe.batch_size,
        "learning_rate": recipe.learning_rate,
        "train_sampling_strategy": "sequential",
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
        "logging_steps": 1,
        # It would put the mean of earlier losses in the place of one that is no number.
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": "non_padding",
        "save_strategy": "steps",
        "save_steps": recipe.checkpoint_steps,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
    }


def save_adapter(model: Any, target: Path, base_name: str) -> None:
    """Weights and configuration alone, naming the base and no path of this machine; complete, then there. Of a model
    of which all weights were trained the model itself, in bf16 as the base."""
    staging = target.with_name(f".{target.name}.incoming")
    shutil.rmtree(staging, ignore_errors=True)
    (model if isinstance(model, PeftModel) else model.to(torch.bfloat16)).save_pretrained(str(staging))
    for name, field in (("adapter_config.json", "base_model_name_or_path"), ("config.json", "_name_or_path")):
        if (staging / name).exists():
            config = json.loads((staging / name).read_text()) | {field: base_name}
            if isinstance(config.get("target_modules"), list):
                config["target_modules"].sort()  # PEFT keeps a set: in another order in each process
            write_whole(staging / name, (json.dumps(config, indent=1, sort_keys=True) + "\n").encode())
    # PEFT writes a model card of its own, with the path of the base in it.
    (staging / "README.md").unlink(missing_ok=True)
    sync_tree(staging)
    staging.rename(target)
    sync_folder(target.parent)
