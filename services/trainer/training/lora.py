"""The adapter that a run trains: LoRA (Hu et al. 2021) on all linear layers, by PEFT."""

from __future__ import annotations

import torch
from peft import LoraConfig

from services.trainer.core.recipe import Recipe
from services.trainer.training.cpu.lora_layer import BaseDtypeLinear


def lora_config(recipe: Recipe) -> LoraConfig:
    """Return PEFT's configuration of the adapter."""
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=2 * recipe.rank,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    config._register_custom_module({torch.nn.Linear: BaseDtypeLinear})
    return config
