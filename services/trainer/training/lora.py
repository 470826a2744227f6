"""The adapter that a run trains: LoRA (Hu et al. 2021) on all linear layers, by PEFT."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch.nn.functional import linear

from services.trainer.core.recipe import Recipe


def lora_config(recipe: Recipe) -> LoraConfig:
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=2 * recipe.rank,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    config._register_custom_module({torch.nn.Linear: BaseDtypeLinear})
    return config


class BaseDtypeLinear(Linear):
    """PEFT's layer, computed in the base's type. PEFT widens each input to the adapter's fp32 and multiplies in that,
    which was a fifth of a step on a CPU; here the adapter's few weights are narrowed instead. They themselves, their
    gradients and the optimiser stay in fp32."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        name = self.active_adapters[0] if len(self.active_adapters) == 1 else ""
        plain = name in self.lora_A and not (self.disable_adapters or self.merged or args or kwargs)
        if not plain:
            given: torch.Tensor = super().forward(x, *args, **kwargs)
            return given
        result: torch.Tensor = self.base_layer(x)
        down = self.lora_A.get_parameter(f"{name}.weight").to(x.dtype)
        up = (self.lora_B.get_parameter(f"{name}.weight") * self.scaling[name]).to(x.dtype)
        narrow = linear(x, down).flatten(0, -2)
        return torch.addmm(result.flatten(0, -2), narrow, up.t()).view_as(result)
