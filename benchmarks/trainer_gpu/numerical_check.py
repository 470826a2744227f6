"""The arm `check`: losses and gradients of packed rows in bfloat16 equal those of separate rows in fp32."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import TrainerCallback

from benchmarks.trainer_gpu.bench import Bench
from benchmarks.trainer_gpu.plan import Workload
from services.trainer.core.recipe import Recipe
from services.trainer.core.resolved_recipe import BaseShape, DataSize, Machine, resolve
from services.trainer.training.fine_tune import fine_tune
from services.trainer.training.rows import TokenizedRow

LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-2, 5e-2
"""Relative difference from fp32 that the numerical check allows."""


def check(bench: Bench) -> dict[str, Any]:
    """Compare two steps in bfloat16, packed, with two steps in fp32 with each row by itself."""
    rows = bench.rows(Workload(80, 40, 0, ("sft", "kto", "dpo"), 0), 24)
    steps = [tuple(rows[:12]), tuple(rows[12:])]
    exact = bench.base("float32")
    rounded = bench.base("bfloat16")
    rounded.load_state_dict(exact.state_dict())
    exact.load_state_dict({name: one.float() for name, one in rounded.state_dict().items()})
    wanted = two_steps(exact, steps, micro_batch_tokens=1, fused_kernels=False)
    found = two_steps(rounded, steps, micro_batch_tokens=100_000)
    losses = [abs(one - other) / abs(other) for one, other in zip(found.losses, wanted.losses, strict=True)]
    gradients = [
        float((one - other).norm() / other.norm())
        for one, other in zip(found.gradients, wanted.gradients, strict=True)
    ]
    passed = max(losses) <= LOSS_TOLERANCE and max(gradients) <= GRADIENT_TOLERANCE
    finite = all(bool(torch.isfinite(one).all()) for one in found.gradients)
    return {
        "passed": passed and finite and len(gradients) == len(steps),
        "loss_differences": [float(f"{one:.2g}") for one in losses],
        "gradient_differences": [float(f"{one:.2g}") for one in gradients],
        "notes": f"losses within {max(losses):.1e}, gradients within {max(gradients):.1e}",
    }


class TwoSteps(NamedTuple):
    """Losses and gradients of two steps."""

    losses: list[float]
    gradients: list[Any]


def two_steps(model: Any, steps: Sequence[tuple[TokenizedRow, ...]], **settings: Any) -> TwoSteps:
    """Train two steps and return the losses and the gradients of the adapter."""
    seen = TwoSteps([], [])

    class Record(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            trained = [one.grad for one in given["model"].parameters() if one.grad is not None]
            seen.gradients.append(torch.cat([one.flatten().float() for one in trained]))

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_log = True

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in (logs or {}):
                seen.losses.append(float(logs["loss"]))

    shape = BaseShape(hidden=256, intermediate=512, layers=2, vocabulary=1024, context=4096, weights=10**7)
    machine = Machine(device="cpu", memory=2**34, weight_bytes=4)
    recipe = Recipe(learning_rate=1e-4, max_grad_norm=0.0, **settings)
    resolved = resolve(recipe, shape, machine, DataSize(rows=24, tokens=2880, longest=240))
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(model, steps, resolved, Path(folder), callback=Record(), stop=threading.Event())
    return seen
