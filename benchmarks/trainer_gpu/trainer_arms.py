"""Arms of the trainer: what a run does, and the same within the memory of a small card, with the gate."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.trainer_gpu.base import make_config, weights_of
from benchmarks.trainer_gpu.bench import Bench
from benchmarks.trainer_gpu.clock import Clock, peak_memory
from benchmarks.trainer_gpu.plan import WORKLOADS, Workload
from services.trainer.base.memory import release_memory
from services.trainer.base.model import generate_answers, load_base
from services.trainer.base.shape import shape_of
from services.trainer.base.tokenization import load_chat
from services.trainer.core.hardware import Quantization
from services.trainer.core.recipe import Recipe
from services.trainer.core.resolved_recipe import ResolvedRecipe
from services.trainer.gate.model_pair import SIDES, ModelPair, score_likelihoods
from services.trainer.training.adapter_files import save_adapter
from services.trainer.training.fine_tune import fine_tune
from services.trainer.training.prepare import resolve_recipe
from services.trainer.training.step_plan import plan_steps

SMALL_MEMORY: Final = 24 * 10**9
"""Bytes of the card that the arm `small` may use."""


def train_ours(
    bench: Bench, workload: Workload, seconds: float, load: Callable[[], Any], **settings: Any
) -> dict[str, Any]:
    """Train as a run does: derive what the settings leave open, then load the base and train it."""
    rows = bench.rows(workload, 48 if bench.tiny else workload.rows)
    shape = shape_of(make_config(bench.shape).to_dict(), weights_of(bench.shape))
    resolved = resolve_recipe(Recipe(**settings), shape, 2, rows, [])
    steps = plan_steps(
        rows, [], tokens_per_step=resolved.tokens_per_step, epochs=resolved.epochs, seed=resolved.seed
    )
    clock = Clock(seconds, bench.warmup_steps)
    clock.tokens_of_step = lambda step: sum(row.tokens for row in steps[step - 1])
    with tempfile.TemporaryDirectory() as checkpoints:
        trained = fine_tune(
            load(), steps, resolved, Path(checkpoints), callback=clock, stop=threading.Event()
        )
    if bench.arm.name == "small-train":
        save_adapter(trained, bench.folder / "adapter", "base")
    return bench.figures(clock, notes_of(resolved))


def notes_of(resolved: ResolvedRecipe) -> str:
    """Return a note on the resolved recipe."""
    checkpointed = ", checkpointing" if resolved.gradient_checkpointing else ""
    quantized = ", 4-bit" if resolved.quantization == "4bit" else ""
    return f"{resolved.tokens_per_step} tokens per step{checkpointed}{quantized}"


def train_small(bench: Bench, workload: Workload, seconds: float) -> dict[str, Any]:
    """Write the base to disk, then train within `SMALL_MEMORY` with 4-bit weights, as a run on a small card."""
    limit_memory()
    path = bench.folder / "base"
    bench.base("bfloat16").save_pretrained(path)
    bench.tokenizer.save_pretrained(path)
    release_memory()
    quantization: Quantization = "4bit" if bench.cuda else "none"

    def load() -> Any:
        return load_base(path, 1, "bfloat16", quantization)

    return train_ours(bench, workload, min(seconds, 8.0), load, quantization=quantization)


def gate_small(bench: Bench) -> dict[str, Any]:
    """Answer and score with base and adapter, as the gate does, within `SMALL_MEMORY`."""
    limit_memory()
    path = bench.folder / "base"
    chat = load_chat(path)
    base = load_base(path, 1, "bfloat16", "4bit" if bench.cuda else "none")
    texts = bench.texts(WORKLOADS["short"], 8 if bench.tiny else 64)
    conversations = [(("user", one["question"]),) for one in texts]
    started = time.perf_counter()
    with ModelPair(base, {"candidate": bench.folder / "adapter", "stable": None}) as models:
        for side in SIDES:
            with models.activate(side) as model:
                answers = generate_answers(model, chat, conversations, 4 if bench.tiny else 40)
        scores = score_likelihoods(
            models,
            chat,
            [(messages, one["answer"]) for messages, one in zip(conversations, texts, strict=True)],
        )
    seconds = time.perf_counter() - started
    changed = sum(one.candidate_nll != one.stable_nll for one in scores)
    if len(answers) != len(texts) or not changed:
        raise RuntimeError(f"{len(answers)} answers, and {changed} likelihoods that the adapter changes")
    return {"seconds": round(seconds, 1), "notes": f"gate in {seconds:.0f} s", **peak_memory()}


def limit_memory() -> None:
    """Let this process use `SMALL_MEMORY` of the card."""
    if torch.cuda.is_available():
        total = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, SMALL_MEMORY / total))
