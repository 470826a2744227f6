"""Supervise the process of the open run: start it, watch it, restart it after it ended.

`restart_policy.py` decides whether and when to restart. The counts are stored in the run's folder, so that a
machine that crashes with it repeatedly is noticed too.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from services.trainer.dataset import snapshot
from services.trainer.files import write_whole
from services.trainer.run import disk_space, micro_batch, run_table
from services.trainer.run.checkpoint_manifest import newest_step
from services.trainer.run.folder import (
    ADAPTER,
    ATTEMPTS,
    CHECKPOINTS,
    CONFIG,
    FAILURE_REASON,
    GATE_RESULT,
    ExitCode,
)
from services.trainer.run.run_table import Run
from services.trainer.worker import restart_policy
from services.trainer.worker.launcher import stop
from services.trainer.worker.restart_policy import Attempts, EndCause
from shared.ports import Clock

TRAINING = "training"
END_CAUSES: Final[dict[int, EndCause]] = {
    ExitCode.STOPPED: "stopped",
    ExitCode.OUT_OF_MEMORY: "memory",
    ExitCode.DISK_FULL: "disk",
}
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RunStatus:
    """`done`: the gate has its report. `failed`: why the run is over. `told`: what people should know meanwhile."""

    done: bool = False
    failed: str | None = None
    told: str | None = None


@dataclass(slots=True)
class RunSupervisor:
    """`start(folder)` starts the process of the run whose folder that is."""

    db: sqlite3.Connection
    clock: Clock
    start: Callable[[Path], subprocess.Popen[bytes]]
    child: subprocess.Popen[bytes] | None = None
    folder: Path | None = None
    not_before_ms: int = 0
    kernel_kills: int | None = None

    def follow(self, run: Run, folder: Path) -> RunStatus:
        """One look: starts what is not there, notes how far it is, or takes its end."""
        if self.child is None:
            return self._begin(run, folder)
        status = self.child.poll()
        if status is None:
            return RunStatus()
        self.child = None
        if status == 0 and (folder / GATE_RESULT).exists():
            return RunStatus(done=True)
        if status == ExitCode.FAILED and (folder / FAILURE_REASON).exists():
            return RunStatus(failed=(folder / FAILURE_REASON).read_text(encoding="utf-8"))
        return self._ended(run, folder, END_CAUSES.get(status, "killed" if status < 0 else "error"), status)

    def stop(self) -> None:
        """In order; it goes on at the next start. That is no death of it."""
        if self.child is None:
            return
        stop(self.child)
        self.child = None
        if self.folder is not None and (self.folder / ATTEMPTS).exists():
            tried, _ = restart_policy.decide(
                _read(self.folder), "stopped", errors=0, by_kernel=False, smaller=False
            )
            try:
                _write(self.folder, tried)
            except OSError as error:
                log.warning("attempt_not_noted", error=str(error))

    def _begin(self, run: Run, folder: Path) -> RunStatus:
        if (folder / GATE_RESULT).exists():
            return RunStatus(done=True)
        if self.clock.now_ms() < self.not_before_ms:
            return RunStatus()
        tried = _read(folder)
        if tried.under_way:
            return self._ended(run, folder, "killed", None)
        write_whole(folder / CONFIG, run.config.to_json().encode())
        _write(folder, restart_policy.record_start(tried.at(position_of(folder))))
        self.kernel_kills = micro_batch.kernel_oom_kills()
        self.folder, self.child = folder, self.start(folder)
        return RunStatus()

    def _ended(self, run: Run, folder: Path, end: EndCause, status: int | None) -> RunStatus:
        """`status`: of the process; None where that is not known, for who started it was gone before it."""
        place = position_of(folder)
        reason = f"its process ended with status {status}: see run.log in its folder"
        errors = run_table.count_failure(self.db, run.config.run_id, reason) if end == "error" else 0
        now = micro_batch.kernel_oom_kills()
        tried, then = restart_policy.decide(
            _read(folder).at(place),
            end,
            errors=errors,
            by_kernel=status is not None and now is not None and now > (self.kernel_kills or 0),
            smaller=place.startswith(TRAINING)
            and micro_batch.micro_batch(folder, run.config.recipe.batch_size) > 1,
        )
        self.not_before_ms = self.clock.now_ms() + round(then.wait_s * 1000)
        if then.halve:
            micro_batch.halve(folder, run.config.recipe.batch_size)
        _write(folder, tried)
        log.warning(
            "run_interrupted",
            run_id=run.config.run_id,
            end=end,
            status=status,
            place=place,
            deaths=tried.deaths,
            again_in_s=None if then.failed else then.wait_s,
        )
        if then.failed:
            return RunStatus(failed=f"{reason}; {then.failed}" if end == "error" else then.failed)
        if end == "disk":
            return RunStatus(told=disk_space.disk_full_message(folder))
        return RunStatus(told=micro_batch.reduction_note(folder, run.config.recipe.batch_size))


def position_of(folder: Path) -> str:
    """How far a run has come, as far as it would go on from there."""
    if not snapshot.is_complete(folder):
        return "snapshot"
    if (folder / ADAPTER).exists():
        return "gate"
    return f"{TRAINING}, step {newest_step(folder / CHECKPOINTS)}"


def _read(folder: Path) -> Attempts:
    file = folder / ATTEMPTS
    return Attempts.of(json.loads(file.read_bytes())) if file.exists() else Attempts()


def _write(folder: Path, tried: Attempts) -> None:
    write_whole(folder / ATTEMPTS, json.dumps(tried.parts()).encode())
