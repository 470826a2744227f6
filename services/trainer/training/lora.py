"""The adapter that a run trains: LoRA (Hu et al. 2021), by PEFT."""

from __future__ import annotations

import torch
from peft import LoraConfig

from services.trainer.core.recipe import Recipe
from services.trainer.core.resolved_recipe import ResolvedRecipe
from services.trainer.training.cpu.lora_layer import BaseDtypeLinear


def lora_config(recipe: Recipe | ResolvedRecipe) -> LoraConfig:
    """Return PEFT's configuration of the adapter."""
    names = [name.strip() for name in recipe.lora_targets.split(",") if name.strip()]
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha or 2 * recipe.rank,
        lora_dropout=recipe.lora_dropout,
        use_rslora=recipe.rslora,
        target_modules="all-linear" if recipe.lora_targets == "all-linear" else names,
        task_type="CAUSAL_LM",
    )
    if recipe.quantization != "4bit":
        # A quantised layer is a subclass of `Linear`, and needs PEFT's own layer for it.
        config._register_custom_module({torch.nn.Linear: BaseDtypeLinear})
    return config
