"""PEFT's linear LoRA layer, computed in the data type of the base.

PEFT converts each input to the adapter's fp32 and multiplies in fp32, a fifth of a step on a CPU. Here the adapter's
few weights are converted to the base's data type instead. The weights themselves, their gradients and the optimizer
state stay in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch.nn.functional import linear


class BaseDtypeLinear(Linear):
    """LoRA layer of a linear layer whose adapter computes in the data type of the base."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the layer's output (..., out_features) for `x` (..., in_features).

        Leaves the cases that training does not use to PEFT: several adapters, a merged or a disabled adapter.
        """
        name = self.active_adapters[0] if len(self.active_adapters) == 1 else ""
        is_plain = name in self.lora_A and not (self.disable_adapters or self.merged or args or kwargs)
        if not is_plain:
            output: torch.Tensor = super().forward(x, *args, **kwargs)
            return output
        base_output: torch.Tensor = self.base_layer(x)
        down = self.lora_A.get_parameter(f"{name}.weight").to(x.dtype)
        up = (self.lora_B.get_parameter(f"{name}.weight") * self.scaling[name]).to(x.dtype)
        hidden = linear(self.lora_dropout[name](x), down).flatten(0, -2)
        return torch.addmm(base_output.flatten(0, -2), hidden, up.t()).view_as(base_output)
