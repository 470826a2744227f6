"""Measures time, load and memory of a training on the GPU."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from transformers import TrainerCallback


class Clock(TrainerCallback):
    """Times the steps after a warm-up, and stops the training after `limit_s` of them.

    Attributes:
        tokens_of_step: Returns the tokens of the rows of a step.
        tokens: Tokens of the timed steps.
        seconds: Their time.
        steps: Their number.
        busy: Share of the time in which the GPU computed anything, in percent, as its driver says; None if unknown.

    """

    def __init__(self, limit_s: float, warmup_steps: int) -> None:
        self.tokens_of_step: Callable[[int], float] = lambda _: 0.0
        self.tokens = self.seconds = 0.0
        self.steps = 0
        self.busy: float | None = None
        self._limit_s, self._warmup_steps = limit_s, warmup_steps
        self._started = 0.0
        self._stopped = threading.Event()
        self._busy: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Forget the memory of earlier trainings."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count a step, and stop if it is time."""
        control.should_save = False
        if not self._started:
            if state.global_step >= self._warmup_steps:
                self._started = synchronized_time()
                threading.Thread(target=self._watch, daemon=True).start()
            return
        self.steps += 1
        self.tokens += self.tokens_of_step(state.global_step)
        # The process is ahead of the GPU by less than a step.
        control.should_training_stop |= time.perf_counter() - self._started >= self._limit_s
        if control.should_training_stop or state.global_step >= state.max_steps:
            self.seconds = synchronized_time() - self._started

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop watching the GPU. Raises `RuntimeError` if no step was timed."""
        self._stopped.set()
        if not self.seconds:
            raise RuntimeError(f"no step was timed: {state.global_step} of {state.max_steps} steps")
        self.busy = round(sum(self._busy) / len(self._busy), 1) if self._busy else None

    def _watch(self) -> None:
        with suppress(Exception):  # not every driver reports it
            while torch.cuda.is_available() and not self._stopped.wait(0.25):
                self._busy.append(float(torch.cuda.utilization()))


def synchronized_time() -> float:
    """Wait for the GPU, and return the time in seconds."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory() -> dict[str, float]:
    """Return the most memory that tensors took, and that torch held."""
    if not torch.cuda.is_available():
        return {}
    return {
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
        "reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2),
    }
