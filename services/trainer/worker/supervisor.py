"""Supervise the process of the open run: start it, poll it, and restart it if it ends early.

`restart_policy.py` decides whether and when to restart. The counts it needs are stored in the run's folder, so a run
that repeatedly takes down the whole machine is recognized too.
"""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from services.trainer.files import write_whole
from services.trainer.run import batch_sizes, disk_space, micro_batch, run_table
from services.trainer.run.folder import ATTEMPTS, CONFIG, FAILURE_REASON, GATE_RESULT, ExitCode
from services.trainer.run.position import position_of, work_folder
from services.trainer.run.run_table import Run
from services.trainer.worker import launcher, restart_policy
from services.trainer.worker.restart_policy import Attempts, EndCause
from shared.errors import Misconfigured
from shared.ports import Clock

END_CAUSES: Final[dict[int, EndCause]] = {
    ExitCode.STOPPED: "stopped",
    ExitCode.OUT_OF_MEMORY: "memory",
    ExitCode.MEMORY_EXHAUSTED: "starved",
    ExitCode.DISK_FULL: "disk",
    ExitCode.PEER_LOST: "peer",
}
DEVICE_RETRY_S: Final = 30.0
"""Time between two attempts to start a process whose GPU is missing."""
PEER_LOST_NOTE: Final = (
    "a process on another machine ended or did not answer: check that all LOOPWRIGHT_TRAINER_NNODES machines run "
    "`python -m services.trainer.worker.join`, and their logs. The run goes on from its newest checkpoint"
)
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RunStatus:
    """Status of a run's process. All fields at their defaults: it is running, or waits for its restart.

    Attributes:
        done: The gate's result is complete.
        failure: Why the run has failed.
        note: What operators should know while the run continues.

    """

    done: bool = False
    failure: str | None = None
    note: str | None = None


@dataclass(slots=True)
class RunSupervisor:
    """Runs the process of the open run. `start_process` starts the process for a run's folder."""

    db: sqlite3.Connection
    clock: Clock
    start_process: Callable[[Path], subprocess.Popen[bytes]]
    device_problem: Callable[[], str | None] = lambda: None
    """Returns why runs cannot use the device; no process starts meanwhile."""
    process: subprocess.Popen[bytes] | None = None
    folder: Path | None = None
    """Folder of the run whose process was started."""
    not_before_ms: int = 0
    """Time before which the process is not restarted."""
    oom_kills: int | None = None
    """Kills for memory that the kernel had counted when the process was started."""
    blocked: str | None = None
    """Why the open run can go on with other settings only, or None."""

    def poll(self, run: Run, folder: Path) -> RunStatus:
        """Start the run's process if none is running, or handle its end. Return the run's status."""
        if self.process is None:
            return self._start(run, folder)
        status = self.process.poll()
        if status is None:
            return RunStatus()
        self.process = None
        if status == ExitCode.DONE and (folder / GATE_RESULT).exists():
            return RunStatus(done=True)
        position = position_of(folder)
        if status == ExitCode.DONE and position != _read_attempts(folder).position:
            # A part of the run is complete. The next one runs in a process of its own.
            _write_attempts(folder, Attempts(position=position))
            return self._start(run, folder)
        failure_reason = work_folder(folder) / FAILURE_REASON
        if status == ExitCode.FAILED and failure_reason.exists():
            return RunStatus(failure=failure_reason.read_text(encoding="utf-8"))
        end = END_CAUSES.get(status, "killed" if status < 0 else "error")
        return self._handle_early_end(run, folder, end, status)

    def stop(self) -> None:
        """Stop the process. The next start resumes the run, and the stop does not count as an early end."""
        if self.process is None:
            return
        launcher.stop(self.process)
        self.process = None
        if self.folder is not None and (self.folder / ATTEMPTS).exists():
            attempts, _ = restart_policy.decide(
                _read_attempts(self.folder), "stopped", errors=0, oom_killed=False, can_halve=False
            )
            try:
                _write_attempts(self.folder, attempts)
            except OSError as error:
                log.warning("attempts_not_stored", error=str(error))

    def _start(self, run: Run, folder: Path) -> RunStatus:
        if (folder / GATE_RESULT).exists():
            return RunStatus(done=True)
        if self.clock.now_ms() < self.not_before_ms:
            return RunStatus()
        if (problem := self.device_problem()) is not None:
            self.not_before_ms = self.clock.now_ms() + round(DEVICE_RETRY_S * 1000)
            return RunStatus(note=problem)
        attempts = _read_attempts(folder)
        if attempts.running:
            # The service ended without recording the end of the process, so they were killed together.
            return self._handle_early_end(run, folder, "killed", None)
        write_whole(folder / CONFIG, run.config.to_json().encode())
        _write_attempts(folder, restart_policy.record_start(attempts.at(position_of(folder))))
        self.oom_kills = micro_batch.kernel_oom_kills()
        try:
            self.process = self.start_process(folder)
        except Misconfigured as error:  # for example its GPU is missing, and may come back
            self.blocked = str(error) if isinstance(error, launcher.OtherWorldSize) else None
            _write_attempts(folder, attempts.at(position_of(folder)))
            self.not_before_ms = self.clock.now_ms() + round(DEVICE_RETRY_S * 1000)
            log.warning("run_not_started", run_id=run.config.run_id, error=str(error))
            return RunStatus(note=str(error))
        self.folder, self.blocked = folder, None
        return RunStatus()

    def _handle_early_end(self, run: Run, folder: Path, end: EndCause, status: int | None) -> RunStatus:
        """Decide about a restart. `status` is the exit code, or None if the service ended before it could read it."""
        run_id = run.config.run_id
        position = position_of(folder)
        reason = f"its process ended with status {status}: see run.log in its folder"
        oom_kills = micro_batch.kernel_oom_kills()
        attempts, decision = restart_policy.decide(
            _read_attempts(folder).at(position),
            end,
            errors=run_table.count_failure(self.db, run_id, reason) if end == "error" else 0,
            oom_killed=status is not None and oom_kills is not None and oom_kills > (self.oom_kills or 0),
            can_halve=batch_sizes.can_halve(folder, position),
        )
        self.not_before_ms = self.clock.now_ms() + round(decision.wait_s * 1000)
        if decision.halve:
            batch_sizes.halve(folder, position)
        _write_attempts(folder, attempts)
        log.warning(
            "run_interrupted",
            run_id=run_id,
            end=end,
            status=status,
            position=position,
            kills=attempts.kills,
            restart_in_s=None if decision.failure else decision.wait_s,
        )
        if decision.failure:
            return RunStatus(failure=f"{reason}; {decision.failure}" if end == "error" else decision.failure)
        if end == "peer":
            return RunStatus(note=PEER_LOST_NOTE)
        if end == "disk":
            return RunStatus(note=disk_space.disk_full_message(folder))
        return RunStatus(note=batch_sizes.reduction_note(folder, position))


def _read_attempts(folder: Path) -> Attempts:
    file = folder / ATTEMPTS
    return Attempts.from_json(file.read_bytes()) if file.exists() else Attempts()


def _write_attempts(folder: Path, attempts: Attempts) -> None:
    write_whole(folder / ATTEMPTS, attempts.to_json())
