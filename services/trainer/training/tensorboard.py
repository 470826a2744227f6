"""A run's curves as TensorBoard event files, in its folder and removed with it: `tensorboard --logdir .../runs`.

Written record by record: a writer with a thread of its own would lose its last points when the process is killed, and
wait for ever where the disk is full. Curves that cannot be written are given up; the run goes on.
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
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/learning_rate",
    "tokens_per_s": "speed/tokens_per_s",
    "num_input_tokens_seen": "speed/tokens_seen",
}
"""What is drawn, and under which name. Other figures that a trainer logs (of an objective, say) come under `train/`."""
NOT_PLOTTED: Final = frozenset({"epoch", "total_flos", "step"})
log = structlog.get_logger(__name__)


class CurveWriter:
    """One file for each start of the run's process; TensorBoard shows them as one."""

    def __init__(self, run: Path) -> None:
        self._folder = run / TENSORBOARD
        self._writer: Any = None

    def begin(self, step: int) -> None:
        """What was drawn after `step`, before a crash, is not shown any more."""
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

    def draw(self, step: int, figures: Mapping[str, Any]) -> None:
        """A point of each figure that is a number."""
        for name, value in figures.items():
            if isinstance(value, int | float) and name not in NOT_PLOTTED:
                point = scalar(TAGS.get(name, f"train/{name}"), value)
                self._write(Event(wall_time=time.time(), step=step, summary=point))
        if self._writer is not None:
            try:
                self._writer.flush()
            except OSError as error:
                self._give_up(error)

    def close(self) -> None:
        """No more points."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, event: Any) -> None:
        if self._writer is not None:
            try:
                self._writer.write(event.SerializeToString())
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        log.warning("curves_given_up", error=str(error))
        self._writer = None
