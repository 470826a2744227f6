"""Callback of a run's training: reports progress, completes checkpoints, and ends a run that diverges.

transformers writes a checkpoint's files: adapter, optimizer, scheduler, random states, position in the data. The
checkpoint counts once it has a manifest (`checkpoint_manifest.py`). If the process is killed while it writes one, or if
a file is damaged, the run resumes from the checkpoint before.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import structlog
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from services.trainer.files import remove
from services.trainer.progress import Progress
from services.trainer.run import disk_space
from services.trainer.run.checkpoint_manifest import (
    has_manifest,
    intact_checkpoints,
    step_of,
    write_manifest,
)
from services.trainer.run.context import RunFailed
from services.trainer.run.folder import NAN_REPORT
from services.trainer.training import nan_report
from services.trainer.training.process_group import ALONE, ProcessGroup
from services.trainer.training.tensorboard import CurveWriter
from shared.run_stage import RunStage

TRAINING_PER_CHECKPOINT: Final = 20
"""Time between two checkpoints, relative to that of the last one: at most a twentieth of a run is spent on them."""
VALIDATION_LOSS: Final = "eval_loss"
"""Metric: mean loss per answer token of held-out users' corrections."""
RowNames = Callable[[int], Sequence[str]]
"""Returns the names of the rows that a step trains on. The first step is 1."""
log = structlog.get_logger(__name__)


def no_row_names(_step: int) -> Sequence[str]:
    """Return no names, if it is not known which rows a step trains on."""
    return ()


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest intact checkpoint, or None. Deletes incomplete checkpoints, and damaged ones after it."""
    newest = next(intact_checkpoints(folder), None)
    newest_step = -1 if newest is None else step_of(newest)
    for checkpoint in list(folder.glob("checkpoint-*")):
        if step_of(checkpoint) > newest_step or not has_manifest(checkpoint):
            log.warning("checkpoint_deleted", checkpoint=checkpoint.name)
            remove(checkpoint)
    return newest


def has_stalled(losses: Sequence[float], patience: int) -> bool:
    """Return whether the last `patience` losses are all no lower than an earlier one. Never with a patience of 0."""
    return patience > 0 and len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])


class RunCallback(TrainerCallback):
    """Callback of a run's training, in each of its processes. Only that of rank 0 reports and writes.

    Args:
        progress: Where each step is reported; None reports nothing.
        stop: Training saves a checkpoint and stops once it is set.
        run: The run's folder, for curves and diagnostics; None writes neither.
        row_names: Names the rows of each step, for diagnostics.
        note: Added to each progress report.
        checkpoint_minutes: Time between two checkpoints, longer where writing one takes long; None saves none by time.
        validation_steps: Steps between two evaluations of the loss on held-out rows; 0 for none.
        early_stopping: Evaluations without a lower loss after which training stops; 0 for never.
        group: The processes of the run. They stop and save after the same step.

    """

    def __init__(
        self,
        progress: Progress | None,
        stop: threading.Event,
        run: Path | None = None,
        row_names: RowNames = no_row_names,
        note: str | None = None,
        checkpoint_minutes: float | None = None,
        validation_steps: int = 0,
        early_stopping: int = 0,
        group: ProcessGroup = ALONE,
    ) -> None:
        self._scaled_loss = nan_report.ScaledLoss()
        self._progress = progress
        self._stop = stop
        self._run = run
        self._row_names = row_names
        self._note = note
        self._checkpoint_s = None if checkpoint_minutes is None else 60 * checkpoint_minutes
        self._validation_steps, self._early_stopping = validation_steps, early_stopping
        self._group = group
        self._curves = CurveWriter(run) if run is not None else None
        self._started = self._saved = time.monotonic()
        self._writing_since = self._write_s = 0.0
        self._first_step = self._logged_step = 0
        self._first_tokens = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Remember where training starts. A resumed run starts at a later step."""
        self._started = self._saved = time.monotonic()
        self._first_step = self._logged_step = state.global_step
        self._first_tokens = state.num_input_tokens_seen
        if self._curves is not None:
            self._curves.open(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Evaluate or save a checkpoint if it is time, or asked to stop. Make space on the disk for a checkpoint."""
        if self._validation_steps and state.global_step % self._validation_steps == 0:
            control.should_evaluate = True
        is_due, stopped = self._group.any(
            self._group.rank == 0 and self._is_checkpoint_due(), self._stop.is_set()
        )
        if is_due:
            control.should_save = True
        if stopped:
            self._stop.set()  # another process may have been asked
            control.should_save = True
            control.should_training_stop = True
        if control.should_save:
            control.should_log = True  # so that no checkpoint is saved after a loss that is not finite
        if control.should_save and self._group.rank == 0:
            disk_space.ensure_space_for_checkpoint(Path(str(args.output_dir)))
            self._writing_since = time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Report a step. Raises `RunFailed` if the loss or the gradient is not finite, before that step is saved."""
        metrics = self._scaled_loss.without_overflow(logs or {}) if args.fp16 else logs or {}
        self._check_finite(state, metrics)
        self._logged_step = state.global_step
        if VALIDATION_LOSS in metrics and self._curves is not None:
            self._curves.add(state.global_step, {VALIDATION_LOSS: metrics[VALIDATION_LOSS]})
        if "loss" not in metrics or self._progress is None:
            return
        seconds = max(1e-9, time.monotonic() - self._started)
        steps_done = max(1, state.global_step - self._first_step)
        tokens_per_s = (state.num_input_tokens_seen - self._first_tokens) / seconds
        self._progress.report(
            RunStage.TRAINING,
            state.global_step,
            state.max_steps,
            loss=round(float(metrics["loss"]), 4),
            tokens_per_s=round(tokens_per_s, 1),
            eta_s=round((state.max_steps - state.global_step) * seconds / steps_done, 1),
            reason=self._note,
        )
        if self._curves is not None:
            self._curves.add(state.global_step, {**metrics, "tokens_per_s": tokens_per_s})

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Stop if the loss on held-out rows no longer falls. The history of a resumed run is in its checkpoint."""
        losses = [float(logs[VALIDATION_LOSS]) for logs in state.log_history if VALIDATION_LOSS in logs]
        log.info("validated", step=state.global_step, losses=losses)
        if has_stalled(losses, self._early_stopping):
            log.info("stopped_early", step=state.global_step)
            control.should_training_stop = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Complete the checkpoint, whose files are all written by now."""
        checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if checkpoint.is_dir() and self._group.rank == 0:
            write_manifest(checkpoint, state.global_step)
        self._saved = time.monotonic()
        self._write_s = self._saved - self._writing_since

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Close the curves."""
        if self._curves is not None:
            self._curves.close()

    def _is_checkpoint_due(self) -> bool:
        """Return whether enough time has passed. A checkpoint of all weights of a large base takes minutes."""
        if self._checkpoint_s is None:
            return False
        return time.monotonic() - self._saved >= max(
            self._checkpoint_s, TRAINING_PER_CHECKPOINT * self._write_s
        )

    def _check_finite(self, state: TrainerState, metrics: dict[str, Any]) -> None:
        metric = nan_report.non_finite_metric(metrics)
        if metric is None:
            return
        if self._run is not None:
            steps = range(self._logged_step + 1, state.global_step + 1)
            rows = [name for step in steps for name in self._row_names(step)]
            nan_report.write(self._run, state.global_step, metric, state.log_history, rows)
        if self._curves is not None:
            self._curves.close()
        raise RunFailed(
            f"{metric} at step {state.global_step}: lower LOOPWRIGHT_TRAINER_LEARNING_RATE, or check the rows of that "
            f"step, which {NAN_REPORT} in the run's folder names; the last good checkpoint is kept there"
        )
