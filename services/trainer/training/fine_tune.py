"""Fine-tune a loaded base on planned steps: prepare the model, then run the trainer from the newest checkpoint."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import torch
from peft import get_peft_model
from transformers import TrainerCallback, set_seed

from services.trainer.core.hardware import Dtype
from services.trainer.core.resolved_recipe import ResolvedRecipe
from services.trainer.run.context import RunStopped
from services.trainer.training.checkpoints import newest_checkpoint
from services.trainer.training.cpu.segment_attention import MAX_EAGER_KEYS
from services.trainer.training.likelihoods import has_plain_head
from services.trainer.training.lora import lora_config
from services.trainer.training.losses import loss_weights
from services.trainer.training.memory_probe import GpuMeter, MemoryMeter, MicroBatchProbe, probe_row
from services.trainer.training.packed_attention import PACKED, attention, can_pack
from services.trainer.training.packing import Packer, pack, pack_for_gpu, pad
from services.trainer.training.process_group import ALONE, ProcessGroup
from services.trainer.training.references import likelihoods_of_base
from services.trainer.training.rows import AnsweredPrompt, TokenizedRow
from services.trainer.training.sharding import leave_to_fsdp
from services.trainer.training.step_dataset import StepDataset
from services.trainer.training.step_plan import Step
from services.trainer.training.trainer import StepTrainer
from services.trainer.training.training_arguments import training_arguments
from services.trainer.training.weight_average import WeightAverage, use_average

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from services.trainer.base.model import Model

log = structlog.get_logger(__name__)


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
    packer = _packer(base) if packs else pad
    with attention(base, PACKED if packs else _padded_attention(base, steps)):
        sample = packer([AnsweredPrompt((1, 2), (3, 4, 5))]).to(base.device)
        plain_head = group.decide(has_plain_head(base, sample))
        log.info("model_prepared", packed=packs, plain_head=plain_head)
        references = None
        if recipe.method == "full":
            base.to(torch.float32)  # type: ignore[arg-type]  # of `to`, the stubs know the device only
            references = likelihoods_of_base(base, steps, recipe, packer, plain_head=plain_head)
        model = _trained_model(base, recipe)
        trainer = StepTrainer(
            StepDataset(
                steps, recipe.micro_batch_tokens, packer, references, group, equal_passes=recipe.sharded
            ),
            loss_weights(recipe, steps),
            plain_head=plain_head,
            fused_kernels=recipe.fused_kernels,
            schedule=recipe.schedule,
            warmup=recipe.warmup_steps,
            validation=validation,
            model=model,
            args=training_arguments(checkpoints, recipe, computed_in, group),
            callbacks=[callback, WeightAverage(len(steps), recipe.average_share)],
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
        trainer.train(resume_from_checkpoint=_checkpoint_to_resume(checkpoints, group))
    if stop.is_set():
        raise RunStopped("stopped during training")
    if trainer.optimizer is not None:
        use_average(trainer.optimizer)
    return model


def _packer(base: PreTrainedModel) -> Packer:
    """Return the packer for a model that can isolate the sequences of a pack."""
    return pack_for_gpu if base.device.type == "cuda" else pack


def _padded_attention(base: PreTrainedModel, steps: Sequence[Step]) -> str:
    """Return the attention for padded rows: on a CPU, the backward pass of PyTorch's fused one is slow."""
    width = max(len(one.ids) for step in steps for row in step for one in row.sequences)
    fused = base.device.type == "cuda" or width > MAX_EAGER_KEYS
    return str(base.config._attn_implementation) if fused else "eager"


def _trained_model(base: PreTrainedModel, recipe: ResolvedRecipe) -> Model:
    """Return the model to train: the base with a new adapter, or the base itself."""
    whole: Any = base
    trained: Model = get_peft_model(whole, lora_config(recipe)) if recipe.method == "lora" else base
    if recipe.sharded:
        leave_to_fsdp(trained)
    return trained


def _checkpoint_to_resume(checkpoints: Path, group: ProcessGroup) -> str | None:
    """Return the folder of rank 0's newest intact checkpoint, or None if there is none."""
    newest = newest_checkpoint(checkpoints) if group.rank == 0 else None
    shared = group.share_folder(newest, checkpoints)
    return None if shared is None else str(shared)
