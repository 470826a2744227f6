"""Watch a run's steps: report progress, mark complete checkpoints, stop a run that diverges.

transformers writes a checkpoint's files (adapter, optimiser, schedule, random states, position in the data). It counts
once it has a manifest (`checkpoint_manifest.py`). After a kill during a write, or if a file is damaged, the run falls
back to the previous checkpoint.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import structlog
from transformers import TrainerCallback

from services.trainer.progress import Progress
from services.trainer.run import disk_space
from services.trainer.run.checkpoint_manifest import has_manifest, intact_checkpoints, step_of, write_manifest
from services.trainer.run.context import RunFailed
from services.trainer.run.folder import NAN_REPORT
from services.trainer.training import nan_report
from services.trainer.training.tensorboard import CurveWriter

RowNames = Callable[[int], Sequence[str]]
"""The names of what a step (from 1) trains on."""
log = structlog.get_logger(__name__)


def no_row_names(_step: int) -> Sequence[str]:
    """Where it is not known what a step trains on."""
    return ()


def newest_checkpoint(folder: Path) -> str | None:
    """The newest that is complete and as it was marked; those after it, half-written or damaged, are removed."""
    newest = next(intact_checkpoints(folder), None)
    best = -1 if newest is None else step_of(newest)
    for checkpoint in list(folder.glob("checkpoint-*")):
        if step_of(checkpoint) > best or not has_manifest(checkpoint):
            log.warning("checkpoint_removed", checkpoint=checkpoint.name)
            shutil.rmtree(checkpoint)
    return None if newest is None else str(newest)


class RunCallback(TrainerCallback):
    """`run`: its folder, for curves and evidence; None: none are kept. `note`: what to say beside each step."""

    def __init__(
        self,
        progress: Progress,
        stop: threading.Event,
        run: Path | None = None,
        rows: RowNames = no_row_names,
        note: str | None = None,
    ) -> None:
        self._progress = progress
        self._stop = stop
        self._run = run
        self._rows = rows
        self._noted = {} if note is None else {"reason": note}
        self._curves = CurveWriter(run) if run is not None else None
        self._began = time.monotonic()
        self._first_step = 0
        self._first_tokens = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A resumed run begins at a later step."""
        self._began, self._first_step = time.monotonic(), state.global_step
        self._first_tokens = state.num_input_tokens_seen
        if self._curves is not None:
            self._curves.begin(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Asked to stop: keep what was learned so far."""
        if self._stop.is_set():
            control.should_save = True
            control.should_training_stop = True
        if control.should_save:
            disk_space.ensure_space_for_checkpoint(Path(args.output_dir))

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Raises `RunFailed` where the loss or the gradient is not finite; nothing of that step is saved."""
        told = logs or {}
        self._refuse_no_number(state, told)
        if "loss" not in told:
            return
        seconds = max(1e-9, time.monotonic() - self._began)
        done = max(1, state.global_step - self._first_step)
        speed = (state.num_input_tokens_seen - self._first_tokens) / seconds
        self._progress.report(
            "training",
            state.global_step,
            state.max_steps,
            loss=round(float(told["loss"]), 4),
            tokens_per_s=round(speed, 1),
            eta_s=round((state.max_steps - state.global_step) * seconds / done, 1),
            **self._noted,
        )
        if self._curves is not None:
            self._curves.draw(state.global_step, {**told, "tokens_per_s": speed})

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """All files of the checkpoint are written by now; TRL has put a card with paths beside them."""
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if checkpoint.is_dir():
            write_manifest(checkpoint, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """No more points."""
        if self._curves is not None:
            self._curves.close()

    def _refuse_no_number(self, state: Any, told: dict[str, Any]) -> None:
        figure = nan_report.non_finite_metric(told)
        if figure is None:
            return
        if self._run is not None:
            nan_report.write(
                self._run, state.global_step, figure, state.log_history, self._rows(state.global_step)
            )
        if self._curves is not None:
            self._curves.close()
        raise RunFailed(
            f"{figure} at step {state.global_step}: lower LOOPWRIGHT_TRAINER_LEARNING_RATE, or look at the rows of "
            f"that step; {NAN_REPORT} in the run's folder names them, and its last good checkpoint is kept"
        )
