"""Training in float16: steps whose gradient overflows are skipped, and only lasting overflows end a run."""

from __future__ import annotations

import math
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from services.trainer.progress import Progress
from services.trainer.run.context import RunFailed
from services.trainer.training.checkpoints import RunCallback
from services.trainer.training.nan_report import MAX_OVERFLOWS
from shared.adapters.in_memory import InMemoryCache


def log_steps(gradients: list[float], *, fp16: bool, loss: float = 1.0) -> int:
    """Log one step for each gradient norm. Return how many were logged before the run failed, if it did."""
    callback = RunCallback(Progress(InMemoryCache(), "a", "r"), threading.Event())
    arguments: Any = SimpleNamespace(fp16=fp16, output_dir="")
    for step, gradient in enumerate(gradients, 1):
        state = TrainerState(global_step=step, max_steps=len(gradients))
        try:
            callback.on_log(arguments, state, TrainerControl(), {"loss": loss, "grad_norm": gradient})
        except RunFailed as failure:
            assert "is inf" in str(failure) or "is nan" in str(failure)  # noqa: PT017 - the number of steps counts
            return step - 1
    return len(gradients)


def test_overflows_while_the_scale_falls_do_not_fail_a_run() -> None:
    gradients = [math.inf] * 7 + [1.0] * 3 + [math.nan] + [1.0]
    assert log_steps(gradients, fp16=True) == len(gradients)


def test_gradient_that_keeps_overflowing_fails_the_run() -> None:
    assert log_steps([math.inf] * 100, fp16=True) == MAX_OVERFLOWS
    assert log_steps(([math.inf] * MAX_OVERFLOWS + [1.0]) * 3, fp16=True) == 3 * (MAX_OVERFLOWS + 1)


@pytest.mark.parametrize("gradient", [math.inf, math.nan])
def test_unscaled_gradient_fails_the_run_at_once(gradient: float) -> None:
    assert log_steps([1.0, gradient, 1.0], fp16=False) == 1


def test_loss_that_is_not_finite_fails_the_run_at_once() -> None:
    assert log_steps([1.0], fp16=True, loss=math.nan) == 0
