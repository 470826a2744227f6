"""Arguments of transformers' `Trainer` for a run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import TrainingArguments

from services.trainer.base.device import describe
from services.trainer.core.hardware import Dtype, mixed_precision
from services.trainer.core.resolved_recipe import ResolvedRecipe
from services.trainer.training.process_group import ALONE, ProcessGroup


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
