"""Candidates that learned nothing, through the real gate. None should pass.

For an experiment or a check of a deployment's own gate: `nulls_through(work, folder)` gates five adapters of random
small weights on a run's base, with the run's held-out feedback, against the run's stable version. Loads torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model

from services.trainer.base.model import load_base
from services.trainer.core.recipe import Recipe
from services.trainer.gate.stage import examine_adapter
from services.trainer.run.context import RunContext
from services.trainer.training.lora import lora_config
from shared.versions import GateReport

SEEDS = (1, 2, 3, 4, 5)
SCALE = 0.1
"""Of the random weights, beside those of a layer of that width: small, and yet many answers of a base of 135M
parameters change."""


def null_adapter(base: Any, recipe: Recipe, folder: Path, seed: int, scale: float = SCALE) -> Path:
    """An adapter of the recipe's rank in `folder`: A as LoRA draws it, B random and small where training begins with
    zeros. The base is as it was."""
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


def nulls_through(
    work: RunContext, folder: Path, seeds: Sequence[int] = SEEDS, scale: float = SCALE
) -> list[GateReport]:
    """One report a seed. Adapters and what was said at the gate lie below `folder`: delete it afterwards, for it holds
    users' text that no erasure reaches."""
    base = load_base(Path(work.config.base), work.config.recipe.threads)
    made = [null_adapter(base, work.config.recipe, folder / f"null-{seed}", seed, scale) for seed in seeds]
    return [examine_adapter(work, adapter, adapter.with_name(f"{adapter.name}-said")) for adapter in made]
