"""Work on a published version by operator command, in a process and a folder of its own: reproduce it, gate it again.

One process runs at a time, never during a run. The folder holds a copy of users' text, so it is removed when the
process ends, when the trainer starts, and before an erasure is applied. A command that was interrupted stays pending
and starts again; it is refused if an erasure removed the version's rows.
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Final

import structlog

from services.trainer.commands.command_table import CommandKind, CommandStatus, CommandTable
from services.trainer.files import remove, write_whole
from services.trainer.run import run_table
from services.trainer.run.folder import (
    ATTEMPTS,
    CONFIG,
    FAILURE_REASON,
    GATE_ANSWERS,
    GATE_REPORT,
    GATE_REPORT_PAGE,
    GATE_RESULT,
    ORIGINAL,
    RUN_LOG,
    ExitCode,
)
from services.trainer.run.run_table import RunConfig
from services.trainer.settings import TrainerSettings
from services.trainer.versions.lineage import LineRecords
from services.trainer.worker import launcher
from services.trainer.worker.restart_policy import MEMORY_REMEDY
from shared.adapters.base_model import PinnedBase
from shared.errors import LoopwrightError, Misconfigured, Rejected, Retryable
from shared.ports import ArtifactStore
from shared.versions import ModelVersion

NOT_COPIED: Final = frozenset(
    {CONFIG, GATE_RESULT, FAILURE_REASON, GATE_ANSWERS, GATE_REPORT, GATE_REPORT_PAGE, RUN_LOG, ATTEMPTS}
)
"""Files of a run's folder that neither training nor the gate reads."""
log = structlog.get_logger(__name__)


class NotPossible(Rejected):
    """This trainer cannot do the work on this version. The message says why."""

    code = "not_possible"


@dataclass(slots=True)
class VersionTask(ABC):
    """Executes the commands of one kind for one line. Subclasses say what the process needs and what its result means.

    `read_line_records` reads the line's records from the log; `start_process` starts the process for a folder.
    """

    kind: ClassVar[CommandKind]
    folder_name: ClassVar[str]
    log_name: ClassVar[str]
    refusal: ClassVar[str]
    """Completes the sentence "VERSION cannot be ..."."""

    settings: TrainerSettings
    base: PinnedBase
    db: sqlite3.Connection
    commands: CommandTable
    store: ArtifactStore
    read_line_records: Callable[[], LineRecords]
    start_process: Callable[[Path], subprocess.Popen[bytes]]
    process: subprocess.Popen[bytes] | None = None
    command_ids: list[str] = field(default_factory=list)
    version: str = ""
    """The commands that the process executes, and the version that they name."""

    @abstractmethod
    def config_of(self, version: ModelVersion, records: LineRecords) -> RunConfig:
        """Return the configuration for the process. Raises `NotPossible`."""

    @abstractmethod
    def result_of(self, folder: Path) -> tuple[CommandStatus, str] | None:
        """Return the commands' result, after a process that ended well; None if its files are not complete.

        Raises `Retryable`; it is then called again.
        """

    def earlier_result(self, command_id: str, version: str) -> tuple[CommandStatus, str] | None:
        """Return the result of a command that the trainer executed before it crashed; None if it did not.

        Raises `Retryable` and `UnknownVersion`.
        """
        return None

    def begin(self, command_ids: Sequence[str], config: RunConfig) -> None:  # noqa: B027 - most tasks record nothing
        """Record that the process has begun to execute these commands."""

    @property
    def busy(self) -> bool:
        """Whether a process is running. No run may start meanwhile: both would use the whole machine."""
        return self.process is not None

    @property
    def folder(self) -> Path:
        """Parent of the folder in which the process works."""
        return self.settings.folder / self.folder_name

    def step(self, *, may_start: bool) -> None:
        """Settle the commands whose process has ended, or start the next one if `may_start`."""
        if self.process is None:
            if may_start:
                self._start_next()
            return
        status = self.process.poll()
        if status is not None:
            self._finish(status)

    def stop(self) -> None:
        """Stop the process and remove its folder. Its commands stay pending."""
        if self.process is not None:
            launcher.stop(self.process)
            self.process = None
        remove(self.folder)

    def _start_next(self) -> None:
        pending = [(self.commands.version_named_by(each), each) for each in self.commands.pending(self.kind)]
        for version in dict.fromkeys(version for version, _ in pending):
            command_ids = [each for named, each in pending if named == version]
            try:
                command_ids = self._settle_executed(command_ids, version)
                if not command_ids:
                    continue
                folder, config = self._prepare(version)
                self.begin(command_ids, config)
                self.process = self.start_process(folder)
            except Retryable:
                remove(self.folder)
                raise
            except (LoopwrightError, OSError) as error:
                remove(self.folder)
                self.commands.settle(command_ids, "refused", f"{version} cannot be {self.refusal}: {error}")
                continue
            self.command_ids, self.version = command_ids, version
            log.info("version_task_started", task=self.kind, version=version, run_id=folder.name)
            return

    def _settle_executed(self, command_ids: Sequence[str], version: str) -> list[str]:
        """Settle the commands that were executed before a crash. Return the others."""
        open_commands = []
        for command_id in command_ids:
            result = self.earlier_result(command_id, version)
            if result is None:
                open_commands.append(command_id)
            else:
                self.commands.settle([command_id], *result)
        return open_commands

    def _prepare(self, name: str) -> tuple[Path, RunConfig]:
        """Fill a folder with what the version was trained from, and with its artifact. Return the folder."""
        records = self.read_line_records()
        version = records.find(name)
        config = self.config_of(version, records)
        remove(self.folder)
        folder = self.folder / config.run_id
        folder.mkdir(parents=True)
        for path in (self.settings.runs / config.run_id).iterdir():
            if path.is_file() and path.name not in NOT_COPIED and not path.name.startswith("."):
                shutil.copyfile(path, folder / path.name)
        if config.stable_run is not None and config.stable_run != config.run_id:
            # The gate reads what the stable version was trained on, next to the folder of the candidate.
            (self.folder / config.stable_run).symlink_to((self.settings.runs / config.stable_run).absolute())
        shutil.copytree(self.store.fetch(version.ref.uri, version.ref.digest), folder / ORIGINAL)
        write_whole(folder / CONFIG, config.to_json().encode())
        return folder, config

    def config_of_run(self, version: ModelVersion) -> RunConfig:
        """Return the configuration of the version's run, with this trainer's path of the base.

        Raises `NotPossible`.
        """
        run = run_table.by_id(self.db, version.run_id) if version.run_id is not None else None
        if run is None:
            raise NotPossible("its run is not in this trainer's database")
        if run.config.base_digest != self.base.digest:
            raise NotPossible(
                f"it was trained on the base {run.config.base_digest[:8]}, but this trainer uses "
                f"{self.base.digest[:8]}: set LOOPWRIGHT_BASE_MODEL to the former"
            )
        return replace(run.config, base=str(self.base.path))

    def _finish(self, exit_code: int) -> None:
        folder = next((path for path in self.folder.glob("*") if not path.is_symlink()), self.folder)
        if exit_code == ExitCode.OUT_OF_MEMORY:
            self._start_with_smaller_batches(folder)
            return
        result = self.result_of(folder) if exit_code == ExitCode.DONE else None
        if result is not None:
            status, message = result
        elif exit_code == ExitCode.FAILED and (folder / FAILURE_REASON).exists():
            status = "failed"
            message = self.failure((folder / FAILURE_REASON).read_text(encoding="utf-8"))
        elif exit_code == ExitCode.MEMORY_EXHAUSTED:
            status, message = "failed", self.failure(f"memory did not suffice: {MEMORY_REMEDY}")
        else:
            status = "failed"
            message = self.failure(f"the process ended with status {exit_code}: {self._last_line(folder)}")
        self.process = None
        remove(self.folder)
        self.commands.settle(self.command_ids, status, message)
        log.info("version_task_ended", task=self.kind, version=self.version, status=status, message=message)

    def _start_with_smaller_batches(self, folder: Path) -> None:
        """Start the process again, which has halved its batches. If its GPU is gone, the commands stay pending."""
        try:
            self.process = self.start_process(folder)
        except Misconfigured as error:
            log.warning("version_task_not_started", task=self.kind, version=self.version, error=str(error))
            self.process = None
            remove(self.folder)

    def failure(self, reason: str) -> str:
        """Return the message of a failed command."""
        return f"{self.version} is not {self.refusal}: {reason}"

    def _last_line(self, folder: Path) -> str:
        file = folder / self.log_name
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
        return lines[-1][:300] if lines else "no output"
