"""Train a run's adapter on the pinned base. Training can be interrupted and resumed at any step.

`prepare` makes the job from the run's folder, and `train` executes it: in this process, or as rank 0 of several, whose
other processes call `follow`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog
import torch
from peft import PeftModel, get_peft_model
from transformers import TrainerCallback, TrainingArguments, set_seed

from services.trainer.base import dtype, replay_prompts
from services.trainer.base.base_answers import Prompt
from services.trainer.base.device import describe, device_kind, run_machine
from services.trainer.base.model import load_base
from services.trainer.base.shape import base_shape
from services.trainer.core.hardware import Dtype, mixed_precision
from services.trainer.core.recipe import Recipe
from services.trainer.core.resolved_recipe import (
    BaseShape,
    DataSize,
    ResolvedRecipe,
    longest_row,
    replay_weight,
    resolve,
)
from services.trainer.dataset import data_card, snapshot_files
from services.trainer.files import sync_folder, sync_tree, write_whole
from services.trainer.run import environment, micro_batch, resolved
from services.trainer.run.checkpoint_manifest import newest_step
from services.trainer.run.context import RunContext, RunFailed, RunStopped
from services.trainer.run.folder import ADAPTER, CHECKPOINTS
from services.trainer.training.batch_order import replay_rows_needed, select_replay
from services.trainer.training.checkpoints import RunCallback, newest_checkpoint
from services.trainer.training.cpu.segment_attention import MAX_EAGER_KEYS
from services.trainer.training.job import TrainingJob
from services.trainer.training.likelihoods import has_plain_head
from services.trainer.training.lora import lora_config
from services.trainer.training.losses import loss_weights
from services.trainer.training.memory_probe import GpuMeter, MemoryMeter, MicroBatchProbe, probe_row
from services.trainer.training.packed_attention import PACKED, attention, can_pack
from services.trainer.training.packing import Packer, pack, pack_for_gpu, pad
from services.trainer.training.process_group import ALONE, ProcessGroup
from services.trainer.training.references import likelihoods_of_base
from services.trainer.training.rows import (
    AnsweredPrompt,
    TokenizedRow,
    longest,
    replay_row,
    sft_row,
    tokenize,
)
from services.trainer.training.sharding import leave_to_fsdp, shard
from services.trainer.training.step_dataset import StepDataset
from services.trainer.training.step_plan import Step, plan_steps
from services.trainer.training.trainer import StepTrainer
from shared.adapters.base_model import find_base
from shared.errors import Misconfigured

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from services.trainer.base.model import Model

MAX_VALIDATION_ROWS: Final = 128
log = structlog.get_logger(__name__)


def prepare(context: RunContext) -> TrainingJob:
    """Return the job of the run. What it needs and what describes it are then in the run's folder.

    Raises:
        RunFailed: There is nothing to train.
        RunStopped: The run was asked to stop.

    """
    folder, chat, config = context.folder, context.chat, context.config
    rows = [tokenize(chat, grouped.row) for grouped in snapshot_files.read_rows(folder)]
    if not rows:
        raise RunFailed("the snapshot has no rows to train")
    train_tokens = round(sum(row.tokens for row in rows) * config.recipe.epochs)
    by_epoch = replay_rows(context, train_tokens)
    replay = [row for epoch in by_epoch for row in epoch]
    record_replay(folder, replay, train_tokens)
    recipe = resolve_for_run(context, rows, replay)
    steps = plan_steps(
        rows, by_epoch, tokens_per_step=recipe.tokens_per_step, epochs=recipe.epochs, seed=recipe.seed
    )
    size = micro_batch.start(folder, recipe.micro_batch_tokens, longest([*rows, *replay]))
    # Several processes would have to agree on a size that they measure.
    limit = None if size.measured or recipe.processes > 1 else recipe.micro_batch_limit
    if limit is None:
        record_environment(context)
    log.info("training", rows=len(rows), replay=len(replay), steps=len(steps), **recipe.model_dump())
    return TrainingJob(
        base=config.base,
        base_digest=config.base_digest,
        dtype=dtype.of_run(folder),
        threads=config.recipe.threads,
        recipe=recipe.model_copy(update={"micro_batch_tokens": size.tokens, "micro_batch_limit": limit}),
        steps=steps,
        validation=validation_rows(context) if recipe.validation_steps else [],
    )


def train(context: RunContext, group: ProcessGroup = ALONE) -> None:
    """Train on the run's snapshot and write the adapter. Raises `RunFailed` or `RunStopped`."""
    folder = context.folder
    job = prepare(context)
    if group.processes > 1:
        group.share(job.to_json())
    recipe = job.recipe
    callback = RunCallback(
        context.progress,
        context.stop,
        folder,
        lambda step: [row.name for row in job.steps[step - 1]],
        micro_batch.reduction_note(folder),
        checkpoint_minutes=recipe.checkpoint_minutes,
        validation_steps=recipe.validation_steps if job.validation else 0,
        early_stopping=recipe.early_stopping,
        group=group,
    )

    def record_measured(tokens: int) -> None:
        micro_batch.record_measured(folder, tokens)
        record_environment(context)

    model = execute(job, folder / CHECKPOINTS, callback, context.stop, group, record_measured)
    save_adapter(model, folder / ADAPTER, context.config.base_name)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def follow(group: ProcessGroup, base_model: str, stop: threading.Event) -> None:
    """Train as a process other than rank 0. `base_model` names the base on this machine.

    Raises:
        Misconfigured: The base on this machine is not that of rank 0.
        RunFailed: As for rank 0, which writes the reason.
        RunStopped: As for rank 0.

    """
    job = TrainingJob.from_json(group.share(b""))
    if group.node != 0:
        base = find_base(base_model)
        if base.digest != job.base_digest:
            raise Misconfigured(
                f"LOOPWRIGHT_BASE_MODEL={base.name} has the digest {base.digest[:16]} here, and the run trains a base "
                f"with {job.base_digest[:16]}: give all machines the same"
            )
        job = job.on(str(base.path))
    recipe = job.recipe
    callback = RunCallback(
        None,
        stop,
        checkpoint_minutes=recipe.checkpoint_minutes,
        validation_steps=recipe.validation_steps if job.validation else 0,
        early_stopping=recipe.early_stopping,
        group=group,
    )
    with tempfile.TemporaryDirectory(prefix="loopwright-rank-") as scratch:
        execute(job, Path(scratch), callback, stop, group)


def execute(
    job: TrainingJob,
    checkpoints: Path,
    callback: RunCallback,
    stop: threading.Event,
    group: ProcessGroup,
    measured: Callable[[int], None] = lambda _: None,
) -> Model:
    """Load the base and train. Returns the model. The arguments are those of `fine_tune`."""
    local_processes = group.processes // group.nodes
    base = load_base(
        Path(job.base),
        max(1, job.threads // local_processes),
        job.dtype,
        job.recipe.quantization,
        "cpu" if job.recipe.sharded else device_kind(),
    )
    if job.recipe.sharded:
        shard(base)
    return fine_tune(
        base,
        job.steps,
        job.recipe,
        checkpoints,
        callback=callback,
        stop=stop,
        validation=job.validation,
        group=group,
        measured=measured,
    )


def record_environment(context: RunContext) -> None:
    """Record the software and hardware that the run trains on, and the size of its micro-batches."""
    environment.record(context.folder, environment.current(context.folder, context.config.recipe))


def replay_rows(context: RunContext, train_tokens: int) -> list[list[TokenizedRow]]:
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


def _answered_prompts(context: RunContext, prompts: Sequence[Prompt]) -> list[TokenizedRow]:
    """Return the base's answers as rows, without empty ones and those longer than a row may be."""
    limit = longest_row(context.config.recipe, base_shape(Path(context.config.base)).context)
    as_row = replay_row if replay_weight(context.config.recipe) else sft_row
    rows = [
        as_row(context.chat, f"replay/{one.id}", one.messages, one.answer, ended=one.ended)
        for one in context.base_answers(prompts)
        if one.answer
    ]
    return [row for row in rows if row.tokens <= limit]


def record_replay(folder: Path, replay: Sequence[TokenizedRow], train_tokens: int) -> None:
    """Add the replay data to the data card; warn if it has a smaller share of the tokens than the recipe asks for."""
    distinct = len({row.name for row in replay})
    warning = data_card.record_replay(
        folder, len(replay), sum(row.tokens for row in replay), train_tokens, distinct
    )
    if warning:
        log.warning("too_little_replay", detail=warning)


def validation_rows(context: RunContext) -> list[TokenizedRow]:
    """Return corrections of held-out users, at most `MAX_VALIDATION_ROWS`; they do not train."""
    rows = snapshot_files.read_rows(context.folder, snapshot_files.HELDOUT_ROWS)
    corrections = [one.row for one in rows if one.row.objective == "sft"]
    return [tokenize(context.chat, row) for row in corrections[:MAX_VALIDATION_ROWS]]


def resolve_for_run(
    context: RunContext, rows: Sequence[TokenizedRow], replay: Sequence[TokenizedRow]
) -> ResolvedRecipe:
    """Return the values that the run trains with; derive and store them if it has none yet."""
    known = resolved.read(context.folder)
    processes = context.settings.world_size
    if known is not None and known.processes != processes and not newest_step(context.folder / CHECKPOINTS):
        known = None  # nothing was trained yet
    if known is None:
        config = context.config
        known = resolve_recipe(
            config.recipe,
            base_shape(Path(config.base)),
            dtype.bytes_per_weight(context.folder),
            rows,
            replay,
            processes=processes,
        )
        resolved.write(context.folder, known)
    return known


def resolve_recipe(
    recipe: Recipe,
    base: BaseShape,
    weight_bytes: int,
    rows: Sequence[TokenizedRow],
    replay: Sequence[TokenizedRow],
    *,
    processes: int = 1,
) -> ResolvedRecipe:
    """Return the values to train with on this machine.

    Args:
        recipe: The settings.
        base: Dimensions of the base.
        weight_bytes: Bytes per weight of the base in memory.
        rows: Rows that train once per epoch.
        replay: Rows that train once.
        processes: Processes that train together, each on a device like this one.

    """
    return resolve(
        recipe,
        base,
        run_machine(weight_bytes, processes),
        DataSize(
            rows=round(len(rows) * recipe.epochs) + len(replay),
            tokens=round(sum(row.tokens for row in rows) * recipe.epochs) + sum(row.tokens for row in replay),
            longest=longest([*rows, *replay]),
        ),
    )


def fine_tune(
    base: PreTrainedModel,
    steps: Sequence[Step],
    recipe: ResolvedRecipe,
    checkpoints: Path,
    *,
    callback: TrainerCallback,
    stop: threading.Event,
    validation: Sequence[TokenizedRow] = (),
    group: ProcessGroup = ALONE,
    meter: MemoryMeter | None = None,
    measured: Callable[[int], None] = lambda _: None,
) -> Model:
    """Train on the steps in their order, and return the model, with an adapter if the recipe uses LoRA.

    Resumes from the newest intact checkpoint of rank 0.

    Args:
        base: The base, on its device.
        steps: The rows of each step.
        recipe: The values to train with.
        checkpoints: Folder of the checkpoints; in processes other than rank 0 an empty folder.
        callback: Called for each step, usually a `RunCallback`.
        stop: Set to stop the training.
        validation: Rows of held-out users, whose loss is computed when the callback asks for it.
        group: The processes that train together. All of them call this function.
        meter: Measures the memory of micro-batches, if the recipe wants it; by default that of the GPU.
        measured: Called with the size of micro-batches that was measured.

    Raises:
        RunFailed: If the loss became NaN or infinite.
        RunStopped: If `stop` was set. A checkpoint was saved.

    """
    set_seed(recipe.seed)
    computed_in: Dtype = str(base.dtype).removeprefix("torch.")  # type: ignore[assignment]  # one of the three
    packs = group.decide(can_pack(base))
    packer: Packer = pad
    if packs:
        packer = pack_for_gpu if base.device.type == "cuda" else pack
    weights = loss_weights(recipe, steps)
    with attention(base, PACKED if packs else _padded_attention(base, steps)):
        sample = packer([AnsweredPrompt((1, 2), (3, 4, 5))]).to(base.device)
        plain_head = group.decide(has_plain_head(base, sample))
        log.info("model_prepared", packed=packs, plain_head=plain_head)
        references = None
        if recipe.method == "full":
            base.to(torch.float32)  # type: ignore[arg-type]  # of `to`, the stubs know the device only
            references = likelihoods_of_base(base, steps, recipe, packer, plain_head=plain_head)
        whole: Any = base
        trained: Model = get_peft_model(whole, lora_config(recipe)) if recipe.method == "lora" else base
        if recipe.sharded:
            leave_to_fsdp(trained)
        trainer = StepTrainer(
            StepDataset(
                steps, recipe.micro_batch_tokens, packer, references, group, equal_passes=recipe.sharded
            ),
            weights,
            plain_head=plain_head,
            fused_kernels=recipe.fused_kernels,
            schedule=recipe.schedule,
            warmup=recipe.warmup_steps,
            validation=validation,
            model=trained,
            args=training_arguments(checkpoints, recipe, computed_in, group),
            callbacks=[callback],
        )
        if recipe.micro_batch_limit is not None:
            trainer.add_callback(
                MicroBatchProbe(
                    trainer,
                    meter or GpuMeter(),
                    probe_row([row for step in steps for row in step]),
                    planned=recipe.micro_batch_tokens,
                    limit=recipe.micro_batch_limit,
                    chosen=measured,
                )
            )
        newest = newest_checkpoint(checkpoints) if group.rank == 0 else None
        shared = group.share_folder(newest, checkpoints)
        trainer.train(resume_from_checkpoint=None if shared is None else str(shared))
    if stop.is_set():
        raise RunStopped("stopped during training")
    return trained


def _padded_attention(base: PreTrainedModel, steps: Sequence[Step]) -> str:
    """Return the attention for padded rows: on a CPU, the backward pass of PyTorch's fused one is slow."""
    width = max(len(one.ids) for step in steps for row in step for one in row.sequences)
    fused = base.device.type == "cuda" or width > MAX_EAGER_KEYS
    return str(base.config._attn_implementation) if fused else "eager"


class RunArguments(TrainingArguments):
    """Arguments of transformers' `Trainer`, without its name `cpu:0` for the CPU, with which it cannot load a file."""

    @property
    def device(self) -> torch.device:
        """Return the device that this process computes on."""
        found: torch.device = super().device
        return torch.device("cpu") if found.type == "cpu" else found


def training_arguments(
    checkpoints: Path,
    recipe: ResolvedRecipe,
    computed_in: Dtype = "float32",
    group: ProcessGroup = ALONE,
) -> TrainingArguments:
    """Return the arguments of transformers' `Trainer`, for a base that was loaded in the type `computed_in`."""
    hardware = describe()
    cuda = hardware.kind == "cuda"
    return RunArguments(
        output_dir=str(checkpoints),
        num_train_epochs=1,  # the plan has the steps of all epochs
        per_device_train_batch_size=1,  # one item of `StepDataset`, which is a whole step
        remove_unused_columns=False,
        learning_rate=recipe.learning_rate,
        optim=recipe.optimizer,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        gradient_checkpointing=recipe.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=cuda and recipe.method == "full" and hardware.bf16,
        fp16=cuda and mixed_precision(computed_in) == "fp16",
        use_cpu=not cuda,
        use_liger_kernel=cuda and recipe.fused_kernels and find_spec("liger_kernel") is not None,
        # The head and its loss are applied to the answers' tokens only, by `StepTrainer`.
        liger_kernel_config={"fused_linear_cross_entropy": False, "cross_entropy": False},
        ddp_backend="gloo" if group.processes > 1 and not cuda else None,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        dataloader_pin_memory=False,
        # Reading the loss waits for the GPU, so it is not read after every step there.
        logging_steps=10 if cuda else 1,
        logging_nan_inf_filter=False,  # the filter would replace a NaN loss by the mean of earlier ones
        save_strategy="steps" if recipe.checkpoint_steps else "no",  # `RunCallback` saves by time
        save_steps=recipe.checkpoint_steps or 500,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        seed=recipe.seed,
        data_seed=recipe.seed,
    )


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
