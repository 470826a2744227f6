"""Training curves of a run as TensorBoard event files in its folder: `tensorboard --logdir .../runs`.

Events are written synchronously. A background writer would lose the last events when the process is
killed, and would wait forever on a full disk. If the curves cannot be written, the run continues without them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import structlog
from tensorboardX import RecordWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from services.trainer.run.folder import TENSORBOARD

TAGS: Final = {
    "loss": "train/loss",
    "eval_loss": "validation/loss",
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/learning_rate",
    "tokens_per_s": "speed/tokens_per_s",
    "num_input_tokens_seen": "speed/tokens_seen",
}
"""TensorBoard tag of each logged metric. Others, such as those of an objective, get the prefix `train/`."""
NOT_PLOTTED: Final = frozenset({"epoch", "total_flos", "step"})
log = structlog.get_logger(__name__)


class CurveWriter:
    """Writer of a run's curves. Each start of the run's process adds a file; TensorBoard shows them as one curve."""

    def __init__(self, run: Path) -> None:
        self._folder = run / TENSORBOARD
        self._writer: RecordWriter | None = None

    def open(self, step: int) -> None:
        """Start a file. TensorBoard hides what an earlier process wrote after `step`, from which training resumes."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._writer = RecordWriter(str(self._folder / f"events.out.tfevents.{time.time_ns()}"))
        except OSError as error:
            self._give_up(error)
            return
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if step:
            restart = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=step + 1, session_log=restart))

    def add(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Add a point for each metric that is a number."""
        for name, value in metrics.items():
            if isinstance(value, int | float) and name not in NOT_PLOTTED:
                point = scalar(TAGS.get(name, f"train/{name}"), value)
                self._write(Event(wall_time=time.time(), step=step, summary=point))
        if self._writer is not None:
            try:
                self._writer.flush()
            except OSError as error:
                self._give_up(error)

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, event: Event) -> None:
        if self._writer is not None:
            try:
                self._writer.write(event.SerializeToString())
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        log.warning("curves_not_written", error=str(error))
        self._writer = None
