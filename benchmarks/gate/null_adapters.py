"""Adapters that learned nothing, sent through the real gate. None of them should pass.

Use it for an experiment, or to check the gate of a deployment with its own data: `gate_null_adapters(context, folder)`
gates five adapters with small random weights on a run's base, with the run's held-out feedback, against the run's
stable version. Imports torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import get_peft_model

from services.trainer.base.model import load_base
from services.trainer.core.recipe import Recipe
from services.trainer.gate.stage import gate_adapter
from services.trainer.run.context import RunContext
from services.trainer.training.lora import lora_config
from shared.versions import GateReport

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SEEDS = (1, 2, 3, 4, 5)
SCALE = 0.1
"""Size of the random weights, relative to the usual initialisation of a layer of that width. Small, but enough to
change many answers of a base with 135M parameters."""


def null_adapter(
    base: PreTrainedModel, recipe: Recipe, folder: Path, seed: int, scale: float = SCALE
) -> Path:
    """Write an untrained adapter of the recipe's rank to `folder` and return the folder. The base is left unchanged.

    Matrix A is initialised as LoRA does; matrix B, which training starts at zero, is small and random.
    """
    torch.manual_seed(seed)
    model = get_peft_model(base, lora_config(recipe))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0.0, scale / weight.shape[0] ** 0.5)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(str(folder), safe_serialization=True)
    model.unload()
    return folder


def gate_null_adapters(
    context: RunContext, folder: Path, seeds: Sequence[int] = SEEDS, scale: float = SCALE
) -> list[GateReport]:
    """Return the gate reports of one null adapter for each seed.

    Leaves adapters and reports below `folder`. Delete it afterwards: the reports contain users' text that no erasure
    finds there.
    """
    recipe = context.config.recipe
    base = load_base(Path(context.config.base), recipe.threads)
    adapters = [null_adapter(base, recipe, folder / f"null-{seed}", seed, scale) for seed in seeds]
    return [
        gate_adapter(context, adapter, adapter.with_name(f"{adapter.name}-report")) for adapter in adapters
    ]
