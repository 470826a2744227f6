"""A run's checkpoints, and what watches its steps: resumable at any step, refused where the loss is no number.

A checkpoint counts once it is marked; a kill in the middle of writing one goes back to the one before.
"""

from __future__ import annotations

import math
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from services.trainer.progress import Progress
from services.trainer.store import write_whole
from services.trainer.work import COMPLETE, RunFailed

CHECKPOINTS = "checkpoints"


def newest_checkpoint(folder: Path) -> str | None:
    """The newest that is marked complete; unmarked ones are half-written and removed."""
    marked = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / COMPLETE).exists():
            marked.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    newest = max(marked, key=lambda checkpoint: int(checkpoint.name.split("-")[1]), default=None)
    return None if newest is None else str(newest)


class Watch(TrainerCallback):
    """Tells each step, marks each complete checkpoint, ends a run that cannot go well or was asked to stop."""

    def __init__(self, progress: Progress, stop: threading.Event) -> None:
        self._progress = progress
        self._stop = stop
        self._began = time.monotonic()
        self._first_step = 0
        self._first_tokens = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A resumed run begins at a later step."""
        self._began, self._first_step = time.monotonic(), state.global_step
        self._first_tokens = state.num_input_tokens_seen

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Asked to stop: keep what was learned so far."""
        if self._stop.is_set():
            control.should_save = True
            control.should_training_stop = True

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Raises `RunFailed` where the loss is not finite."""
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if not math.isfinite(float(loss)):
            raise RunFailed(f"the loss became {loss} at step {state.global_step}: lower the learning rate")
        seconds = max(1e-9, time.monotonic() - self._began)
        done = max(1, state.global_step - self._first_step)
        self._progress.tell(
            "training",
            state.global_step,
            state.max_steps,
            loss=round(float(loss), 4),
            tokens_per_s=round((state.num_input_tokens_seen - self._first_tokens) / seconds, 1),
            eta_s=round((state.max_steps - state.global_step) * seconds / done, 1),
        )

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """All files of the checkpoint are written by now; TRL has put a card with paths beside them."""
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if checkpoint.is_dir():
            write_whole(checkpoint / COMPLETE, str(state.global_step).encode())
