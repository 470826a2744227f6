"""Mean of the trained weights over the last steps of a run (Izmailov et al. 2018), which replaces the last weights.

The weights of single steps differ in what they have forgotten; their mean has forgotten less. The mean is part of the
optimizer's state: checkpoints contain it, so a resumed run ends with the same bits.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

MEAN: Final = "mean_of_last_steps"
"""Key of a weight's mean in its optimizer state."""


class WeightAverage(TrainerCallback):
    """Callback that keeps the mean of each trained weight.

    Args:
        steps: Steps of the run.
        share: Share of the steps, at the end, over which weights are averaged.

    """

    def __init__(self, steps: int, share: float) -> None:
        self._first = steps - round(share * steps) + 1

    @torch.no_grad()
    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Optimizer | None = None,
        **_: Any,
    ) -> None:
        """Add the weights of this step to the mean."""
        if optimizer is None or state.global_step < self._first:
            return
        for weight, values in optimizer.state.items():
            if MEAN in values:
                values[MEAN].lerp_(weight.detach(), 1 / (state.global_step - self._first + 1))
            else:
                values[MEAN] = weight.detach().clone()


@torch.no_grad()
def use_average(optimizer: Optimizer) -> None:
    """Replace each trained weight by its mean, if it has one."""
    for weight, values in optimizer.state.items():
        if MEAN in values:
            weight.copy_(values[MEAN])
