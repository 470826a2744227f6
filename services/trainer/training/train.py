"""Train a run's adapter on the pinned base with TRL. Training can be interrupted and resumed at any step."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

from services.trainer.base import dtype, replay_prompts
from services.trainer.base.base_answers import BaseAnswer, Prompt
from services.trainer.base.model import default_device, load_base
from services.trainer.base.tokenization import token_count
from services.trainer.core.recipe import Recipe
from services.trainer.dataset import data_card, snapshot_files
from services.trainer.dataset.filters import Row
from services.trainer.dataset.objectives import (
    TrlRow,
    dpo_row,
    kto_row,
    kto_weights,
    objective_of,
    sft_row,
)
from services.trainer.files import sync_folder, sync_tree, write_whole
from services.trainer.run import environment, micro_batch
from services.trainer.run.context import RunContext, RunFailed, RunStopped
from services.trainer.run.folder import ADAPTER, CHECKPOINTS
from services.trainer.training.batch_order import (
    interleave,
    order_by_length,
    order_judged,
    replay_rows_needed,
    select_replay,
    split_batches,
)
from services.trainer.training.checkpoints import RunCallback, newest_checkpoint
from services.trainer.training.cpu.answers_head import add_answers_head
from services.trainer.training.cpu.attention import with_training_attention
from services.trainer.training.cpu.sft_trainer import CpuSFTTrainer
from services.trainer.training.lora import lora_config
from services.trainer.training.multi_objective_trainer import MultiObjectiveTrainer, plan_steps
from services.trainer.training.truncated_answers import TruncatedAnswersMixin
from shared.chat_format import ChatFormat
from shared.errors import Misconfigured
from shared.feedback_kinds import Objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from services.trainer.base.model import Model

log = structlog.get_logger(__name__)


class Sft(TruncatedAnswersMixin, SFTTrainer):
    """TRL's SFT trainer, without an end of turn after truncated answers."""


class CpuSft(TruncatedAnswersMixin, CpuSFTTrainer):
    """`CpuSFTTrainer`, without an end of turn after truncated answers."""


class Kto(TruncatedAnswersMixin, KTOTrainer):
    """TRL's KTO trainer, without an end of turn after truncated answers."""


class Dpo(TruncatedAnswersMixin, DPOTrainer):
    """TRL's DPO trainer, without an end of turn after truncated answers."""


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """A row as TRL takes it, the name of the feedback behind it, and its number of tokens."""

    name: str
    fields: TrlRow
    tokens: int


def train(context: RunContext) -> None:
    """Train on the run's snapshot and write the adapter. Raises `RunFailed` or `RunStopped`."""
    folder, recipe, chat = context.folder, context.config.recipe, context.chat
    rows = [training_row(chat, grouped.row) for grouped in snapshot_files.read_rows(folder)]
    if not rows:
        raise RunFailed("the snapshot has no rows to train")
    train_tokens = round(sum(row.tokens for row in rows) * recipe.epochs)
    replay = replay_rows(context, train_tokens)
    environment.record(folder, environment.current(folder, recipe))
    record_replay(folder, [row for epoch in replay for row in epoch], train_tokens)
    ordered = order_rows(rows, replay, recipe)
    log.info("training", rows=len(rows), replay=sum(map(len, replay)), ordered=len(ordered))
    steps = [indices for _, indices in plan_steps([row.fields for row in ordered], recipe.batch_size)]
    callback = RunCallback(
        context.progress,
        context.stop,
        folder,
        lambda step: [ordered[index].name for index in steps[step - 1]],
        micro_batch.reduction_note(folder, recipe.batch_size),
    )
    base = load_base(Path(context.config.base), recipe.threads, dtype.of_run(folder))
    model = fine_tune(
        with_training_attention(base, recipe.max_tokens),
        chat.tokenizer,
        [row.fields for row in ordered],
        recipe,
        folder / CHECKPOINTS,
        callback=callback,
        stop=context.stop,
        micro_batch_size=micro_batch.size(folder, recipe.batch_size),
    )
    save_adapter(model, folder / ADAPTER, context.config.base_name)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def replay_rows(context: RunContext, train_tokens: int) -> list[list[TrainingRow]]:
    """Return the replay rows of each epoch, as many as `train_tokens` of other rows in all epochs require.

    Raises:
        RunFailed: The operator's prompts cannot be read.
        RunStopped: The run was asked to stop.

    """
    recipe = context.config.recipe
    try:
        own = replay_prompts.prompts_of_run(context.folder, context.settings.replay_prompt_file)
    except Misconfigured as error:
        raise RunFailed(f"{error}. Then start a new run.") from error
    rows = _answered_prompts(context, replay_prompts.choose_prompts(own, recipe.replay_prompts))
    needed = replay_rows_needed(train_tokens, [row.tokens for row in rows], recipe.replay_share)
    if needed > recipe.replay_prompts:
        rows = _answered_prompts(context, replay_prompts.choose_prompts(own, needed))
    chosen = select_replay(train_tokens, [row.tokens for row in rows], recipe.replay_share, recipe.epochs)
    return [[rows[index] for index in epoch] for epoch in chosen]


def _answered_prompts(context: RunContext, prompts: Sequence[Prompt]) -> list[TrainingRow]:
    """Return the base's answers as rows, without empty ones and those longer than a row may be."""
    rows = [_replay_row(context.chat, answer) for answer in context.base_answers(prompts) if answer.answer]
    return [row for row in rows if row.tokens <= context.config.recipe.max_tokens]


def record_replay(folder: Path, replay: Sequence[TrainingRow], train_tokens: int) -> None:
    """Add the replay data to the data card; warn if it has a smaller share of the tokens than the recipe asks for."""
    distinct = len({row.name for row in replay})
    warning = data_card.record_replay(
        folder, len(replay), sum(row.tokens for row in replay), train_tokens, distinct
    )
    if warning:
        log.warning("too_little_replay", detail=warning)


def training_row(chat: ChatFormat, row: Row) -> TrainingRow:
    """Return the TRL row of a verified row, by its objective."""
    fields: TrlRow
    tokens = token_count(chat, row.messages, row.answer)
    match row.objective:
        case "dpo":
            tokens += token_count(chat, row.messages, row.original)
            fields = dpo_row(row.messages, row.answer, row.original)
        case "kto":
            fields = kto_row(row.messages, row.answer, bool(row.label))
        case "sft":
            fields = sft_row(row.messages, row.answer)
    fields["truncated"] = [row.unended, row.original_unended]
    return TrainingRow(row.identity, fields, tokens)


def _replay_row(chat: ChatFormat, answer: BaseAnswer) -> TrainingRow:
    fields = sft_row(answer.messages, answer.answer)
    fields["truncated"] = [not answer.ended, False]
    tokens = token_count(chat, answer.messages, answer.answer)
    return TrainingRow(f"replay/{answer.id}", fields, tokens)


def order_rows(
    rows: Sequence[TrainingRow], replay: Sequence[Sequence[TrainingRow]], recipe: Recipe
) -> list[TrainingRow]:
    """Return all rows of a run in the order in which they train. `replay` has rows by epoch.

    Each objective has its own order, and its batches are spread over the run. The result depends only on the arguments,
    so a resumed run continues in the same order.
    """
    by_objective: dict[Objective, list[TrainingRow]] = {"sft": [], "kto": [], "dpo": []}
    for row in rows:
        by_objective[objective_of(row.fields)].append(row)
    by_label: dict[bool, list[TrainingRow]] = {True: [], False: []}
    for row in by_objective["kto"]:
        by_label[bool(row.fields.get("label"))].append(row)
    size, epochs, seed = recipe.batch_size, recipe.epochs, recipe.seed
    orders = [
        order_by_length(by_objective["sft"], replay, epochs, size, lambda row: row.tokens, seed),
        order_judged(by_label[True], by_label[False], epochs, seed),
        order_by_length(by_objective["dpo"], [], epochs, size, lambda row: row.tokens, seed),
    ]
    return [row for batch in interleave([split_batches(order, size) for order in orders]) for row in batch]


def fine_tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[TrlRow],
    recipe: Recipe,
    checkpoints: Path,
    *,
    callback: TrainerCallback,
    stop: threading.Event,
    micro_batch_size: int | None = None,
) -> Model:
    """Train on `rows` once, in their order, and return the model, with an adapter if the recipe uses LoRA.

    Resumes from the newest intact checkpoint.

    Args:
        model: The base, on its device.
        tokenizer: The base's tokenizer.
        rows: Rows of all epochs. A step trains `recipe.batch_size` rows of one objective, or fewer if a row of another
            objective follows.
        recipe: Hyperparameters.
        checkpoints: Folder of the checkpoints.
        callback: Called for each step, usually a `RunCallback`.
        stop: Set to stop the training.
        micro_batch_size: Rows that go through the model at once; by default a whole batch.

    Raises:
        RunFailed: If the loss became NaN or infinite, or a row is too long.
        RunStopped: If `stop` was set. A checkpoint was saved.

    """
    set_seed(recipe.seed)
    tokenizer.padding_side = "right"
    micro_batch_size = micro_batch_size or recipe.batch_size
    plan = [(objective, len(indices)) for objective, indices in plan_steps(rows, recipe.batch_size)]
    base: Any = model
    trained: Model = get_peft_model(base, lora_config(recipe)) if recipe.method == "lora" else base.float()
    trainers = objective_trainers(trained, tokenizer, rows, recipe, checkpoints, micro_batch_size)
    arguments = _common_arguments(checkpoints, recipe) | {
        "per_device_train_batch_size": 1,  # one item of `StepDataset`, which is a whole batch
        "remove_unused_columns": False,
        "include_num_input_tokens_seen": "no",  # `MultiObjectiveTrainer` counts them
    }
    try:
        trainer = MultiObjectiveTrainer(
            plan,
            trainers,
            {"sft": 1.0, "kto": recipe.preference_rate, "dpo": recipe.preference_rate},
            micro_batch_size,
            model=trained,
            args=TrainingArguments(**arguments),
            processing_class=tokenizer,
            callbacks=[callback],
        )
    except ValueError as error:
        raise RunFailed(f"the rows cannot be trained: {error}") from error
    trainer.train(resume_from_checkpoint=newest_checkpoint(checkpoints))
    if stop.is_set():
        raise RunStopped("stopped during training")
    return trained


def objective_trainers(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[TrlRow],
    recipe: Recipe,
    checkpoints: Path,
    micro_batch_size: int,
) -> dict[Objective, Any]:
    """Return a TRL trainer for each objective among `rows`. They tokenize rows and compute losses, but never train."""
    by_objective: dict[Objective, list[dict[str, Any]]] = {}
    for row in rows:
        by_objective.setdefault(objective_of(row), []).append({"truncated": [False, False], **row})
    arguments = _common_arguments(checkpoints, recipe) | {
        # KTO pairs each conversation with the answer of a neighbour within a micro-batch.
        "per_device_train_batch_size": micro_batch_size,
        "max_length": recipe.max_tokens,
        # Without an adapter that can be turned off, the reference's likelihoods are computed before the first step.
        "precompute_ref_log_probs": recipe.method == "full",
    }
    trainers: dict[Objective, Any] = {}
    for objective, fields in by_objective.items():
        trainer, trainer_arguments = _trainer_class(objective, fields, recipe, checkpoints, arguments)
        trainers[objective] = trainer(
            model=model,
            args=trainer_arguments,
            train_dataset=Dataset.from_list(fields),
            processing_class=tokenizer,
        )
        if isinstance(model, PeftModel) and "ref" in model.peft_config:
            # TRL's copy of the fresh adapter. The base with the adapter off is the same reference.
            model.delete_adapter("ref")
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if default_device() == "cuda":
        add_fused_lm_head(base, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    else:
        add_answers_head(base)
    return trainers


def _trainer_class(
    objective: Objective,
    rows: Sequence[dict[str, Any]],
    recipe: Recipe,
    checkpoints: Path,
    arguments: dict[str, Any],
) -> tuple[Any, Any]:
    """Return the class of an objective's TRL trainer, and its arguments."""
    match objective:
        case "sft":
            return (Sft if default_device() == "cuda" else CpuSft), sft_arguments(checkpoints, recipe)
        case "kto":
            labels = [row["label"] for row in rows]
            liked, disliked = kto_weights(labels.count(True), labels.count(False))
            return Kto, KTOConfig(
                **arguments, beta=recipe.kto_beta, desirable_weight=liked, undesirable_weight=disliked
            )
        case "dpo":
            return Dpo, DPOConfig(
                **arguments,
                beta=recipe.dpo_beta,
                loss_type=["sigmoid", "sft"],
                loss_weights=[1.0, recipe.dpo_nll],
            )


def sft_arguments(checkpoints: Path, recipe: Recipe) -> SFTConfig:
    """Return the arguments of TRL's SFT trainer."""
    return SFTConfig(
        **_common_arguments(checkpoints, recipe), max_length=recipe.max_tokens, completion_only_loss=True
    )


def _common_arguments(checkpoints: Path, recipe: Recipe) -> dict[str, Any]:
    """Return the arguments that all trainers share.

    Where they differ from TRL's defaults, they were measured to be faster on a CPU and no worse: one data type
    throughout (`dtype.py`), no autocast, no gradient checkpointing, batches of rows of similar length.
    """
    cuda = default_device() == "cuda"
    return {
        "output_dir": str(checkpoints),
        "num_train_epochs": 1,  # the rows of all epochs are in order (`batch_order.py`)
        "per_device_train_batch_size": recipe.batch_size,
        "learning_rate": recipe.learning_rate,
        "train_sampling_strategy": "sequential",
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # the filter would replace a NaN loss by the mean of earlier ones
        "include_num_input_tokens_seen": "non_padding",
        "save_strategy": "steps",
        "save_steps": recipe.checkpoint_steps,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
    }


def save_adapter(model: Model, target: Path, base_name: str) -> None:
    """Write weights and configuration to `target`, which appears only when complete.

    The configuration names the base by `base_name`, not by its path on this machine. A model without an adapter is
    written as a whole, in bfloat16.
    """
    staging = target.with_name(f".{target.name}.incoming")
    shutil.rmtree(staging, ignore_errors=True)
    saved: Any = model if isinstance(model, PeftModel) else model.to(torch.bfloat16)  # type: ignore[arg-type]
    saved.save_pretrained(str(staging))
    for name, field in (("adapter_config.json", "base_model_name_or_path"), ("config.json", "_name_or_path")):
        if (staging / name).exists():
            config = json.loads((staging / name).read_text()) | {field: base_name}
            if isinstance(config.get("target_modules"), list):
                config["target_modules"].sort()  # PEFT keeps a set, whose order differs between processes
            write_whole(staging / name, (json.dumps(config, indent=1, sort_keys=True) + "\n").encode())
    # PEFT writes a model card with the path of the base in it.
    (staging / "README.md").unlink(missing_ok=True)
    sync_tree(staging)
    staging.rename(target)
    sync_folder(target.parent)
