"""Exports and dry runs: by command, or exports whenever a run would start if the trainer never trains.

Each is made by a process of its own (`worker/dataset_task.py`), one at a time. A task that was stopped, by the end of
the service or by an erasure, starts again: its commands stay pending. So an export that an erasure meets while it is
made is made again from what is left.
"""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from services.trainer.commands.command_table import CommandKind, CommandTable
from services.trainer.dataset import batch_table
from services.trainer.files import remove
from services.trainer.run import run_table
from services.trainer.settings import TrainerSettings
from services.trainer.worker import launcher
from services.trainer.worker.dataset_task import STAGE, DatasetTask, TaskKind, TaskResult, read_result
from shared.ports import Clock

NEVER_TRAINS: Final = (
    "this trainer exports datasets and never trains (LOOPWRIGHT_TRAINER_MODE=export): "
    "`loopwright dataset export` exports one now"
)
RETRY_S: Final = 60.0
"""Time until an automatic export that failed is tried again."""
NOT_WRITTEN: Final = -1
"""`TaskResult.records` of an export whose files could not be written."""
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class DatasetTasks:
    """Executes the exports and dry runs of one line. `start_process` starts the process for a task's folder."""

    settings: TrainerSettings
    db: sqlite3.Connection
    commands: CommandTable
    clock: Clock
    start_process: Callable[[Path], subprocess.Popen[bytes]]
    marks: frozenset[str] | None = frozenset()
    """Texts by which the base's prompts separate turns. Nothing starts before they are known."""
    process: subprocess.Popen[bytes] | None = None
    task: DatasetTask | None = None
    command_ids: list[str] = field(default_factory=list)
    not_before_ms: int = 0
    """Time before which no automatic export starts."""

    @property
    def folder(self) -> Path:
        """Folder of the task."""
        return self.settings.folder / "dataset-task"

    @property
    def busy(self) -> bool:
        """Whether a process is running."""
        return self.process is not None

    def step(self, prospects: Callable[[], tuple[int, str]]) -> None:
        """Settle the commands whose process has ended, or start the next one.

        `prospects` returns the number of new usable examples, and whether a run starts without a command.
        """
        if self.process is not None:
            status = self.process.poll()
            if status is not None:
                self._finish(status)
        if self.process is not None or self.marks is None:
            return
        if pending := self.commands.pending(CommandKind.EXPORT_DATASET):
            self._start(self._task("export"), pending)
        elif pending := self.commands.pending(CommandKind.DRY_RUN):
            self._start(self._task("dry_run", *prospects()), pending)

    def export_automatically(self, reason: str) -> None:
        """Start an export without a command, unless a process is running or the last one has just failed."""
        if self.busy or self.marks is None or self.clock.now_ms() < self.not_before_ms:
            return
        log.info("exporting_automatically", reason=reason)
        self._start(self._task("export"), [])

    def _task(self, kind: TaskKind, new_examples: int = 0, prospects: str = "") -> DatasetTask:
        through, now_ms = batch_table.through(self.db), self.clock.now_ms()
        return DatasetTask(kind, through, now_ms, new_examples, prospects, tuple(sorted(self.marks or ())))

    def status(self) -> str | None:
        """Return what the process is doing, or None if there is none."""
        if self.task is None or self.process is None:
            return None
        file = self.folder / STAGE
        stage = file.read_text(encoding="utf-8") if file.exists() else "starting"
        return f"{'export' if self.task.kind == 'export' else 'dry run'}: {stage}"

    def stop(self) -> None:
        """Stop the process, if it has not ended, and remove its folder. Its commands stay pending."""
        if self.process is not None:
            status = self.process.poll()
            if status is not None:
                self._finish(status)
            else:
                launcher.stop(self.process)
                self.process = None
        remove(self.folder)

    def _start(self, task: DatasetTask, command_ids: Sequence[str]) -> None:
        remove(self.folder)
        self.folder.mkdir(parents=True)
        task.write(self.folder)
        self.process = self.start_process(self.folder)
        self.task, self.command_ids = task, list(command_ids)
        log.info("dataset_task_started", task=task.kind)

    def _finish(self, status: int) -> None:
        task, result = self.task, read_result(self.folder)
        self.process = None
        if task is None or result is None:
            result = TaskResult(
                False, f"its process ended with status {status}: {self._last_line()}", records=NOT_WRITTEN
            )
        elif task.kind == "export" and result.records != NOT_WRITTEN:
            # What was read no longer counts as new, even if none of it can be exported.
            with self.db:
                run_table.record_export(self.db, result.digest, task.through, task.now_ms, result.records)
        if result.records == NOT_WRITTEN:
            self.not_before_ms = self.clock.now_ms() + round(RETRY_S * 1000)
        remove(self.folder)
        self.commands.settle(self.command_ids, "done" if result.done else "refused", result.message)
        log.info("dataset_task_ended", done=result.done, records=result.records)

    def _last_line(self) -> str:
        file = self.folder / launcher.DATASET_TASK_LOG
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
        return lines[-1][:300] if lines else "no output"
