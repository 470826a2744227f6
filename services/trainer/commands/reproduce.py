"""Reproduction: train a version again from its snapshot, by operator command, and compare the weights.

One version is reproduced at a time, never during a run, in a separate process and folder. The folder holds a copy
of users' text, so it is removed when the process ends, when the trainer starts, and before an erasure is applied. A
command that was interrupted stays pending and starts again; it is refused if an erasure removed the version's rows.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import structlog

from services.trainer.commands.command_table import CommandKind, CommandTable
from services.trainer.files import remove, write_whole
from services.trainer.run import run_table
from services.trainer.run.folder import (
    ATTEMPTS,
    COMPARISON,
    CONFIG,
    FAILURE_REASON,
    GATE_ANSWERS,
    GATE_RESULT,
    ORIGINAL,
    REPRODUCE_LOG,
    RUN_LOG,
    ExitCode,
)
from services.trainer.run.run_table import RunConfig
from services.trainer.settings import TrainerSettings
from services.trainer.versions.lineage import LineRecords, read_snapshot_state, why_not_reproducible
from services.trainer.worker import launcher
from shared.adapters.base_model import PinnedBase
from shared.errors import LoopwrightError, Rejected
from shared.ports import ArtifactStore
from shared.versions import ModelVersion

NOT_COPIED: Final = frozenset({CONFIG, GATE_RESULT, FAILURE_REASON, GATE_ANSWERS, RUN_LOG, ATTEMPTS})
"""Files of a run's folder that its training does not read."""
log = structlog.get_logger(__name__)


class NotReproducible(Rejected):
    """The version cannot be reproduced by this trainer. The message says why."""

    code = "not_reproducible"


@dataclass(slots=True)
class Reproducer:
    """Executes the reproduce commands of one line.

    `read_line_records` reads the line's records from the log; `start_process` starts the process for a folder.
    """

    settings: TrainerSettings
    base: PinnedBase
    db: sqlite3.Connection
    commands: CommandTable
    store: ArtifactStore
    read_line_records: Callable[[], LineRecords]
    start_process: Callable[[Path], subprocess.Popen[bytes]] = launcher.start_reproduction
    process: subprocess.Popen[bytes] | None = None
    command_id: str = ""
    version: str = ""
    """The command that the process executes, and the version that it names."""

    @property
    def busy(self) -> bool:
        """Whether a process is running. No run may start meanwhile: both would use the whole machine."""
        return self.process is not None

    @property
    def folder(self) -> Path:
        """Parent of the folder in which the process works."""
        return self.settings.folder / "reproductions"

    def step(self, *, may_start: bool) -> None:
        """Settle the command whose process has ended, or start the next one if `may_start`."""
        if self.process is None:
            if may_start:
                self._start_next()
            return
        status = self.process.poll()
        if status is not None:
            self._finish(status)

    def stop(self) -> None:
        """Stop the process and remove its folder. Its command stays pending."""
        if self.process is not None:
            launcher.stop(self.process)
            self.process = None
        remove(self.folder)

    def _start_next(self) -> None:
        for command_id in self.commands.pending(CommandKind.REPRODUCE):
            version = self.commands.version_to_reproduce(command_id)
            try:
                folder = self._prepare(version)
                self.process = self.start_process(folder)
            except (LoopwrightError, OSError) as error:
                remove(self.folder)
                self.commands.settle([command_id], "refused", f"{version} cannot be reproduced: {error}")
                continue
            self.command_id, self.version = command_id, version
            log.info("reproduction_started", version=version, run_id=folder.name)
            return

    def _prepare(self, name: str) -> Path:
        """Fill a folder with what the version was trained from, and with its artifact. Return the folder."""
        records = self.read_line_records()
        version = records.find(name)
        config = self._config(version, records)
        remove(self.folder)
        folder = self.folder / config.run_id
        folder.mkdir(parents=True)
        for path in (self.settings.runs / config.run_id).iterdir():
            if path.is_file() and path.name not in NOT_COPIED and not path.name.startswith("."):
                shutil.copyfile(path, folder / path.name)
        shutil.copytree(self.store.fetch(version.ref.uri, version.ref.digest), folder / ORIGINAL)
        write_whole(folder / CONFIG, config.to_json().encode())
        return folder

    def _config(self, version: ModelVersion, records: LineRecords) -> RunConfig:
        """Return the configuration of the version's run, with this trainer's path of the base.

        Raises `NotReproducible`.
        """
        if version.run_id is None:
            raise NotReproducible("it is the line's base, which was not trained here")
        state = read_snapshot_state(self.settings.runs / version.run_id, version.dataset)
        reasons = why_not_reproducible(version, state, records)
        if reasons:
            raise NotReproducible("; ".join(reasons))
        run = run_table.by_id(self.db, version.run_id)
        if run is None:
            raise NotReproducible("its run is not in this trainer's database")
        if run.config.base_digest != self.base.digest:
            raise NotReproducible(
                f"it was trained on the base {run.config.base_digest[:8]}, but this trainer uses "
                f"{self.base.digest[:8]}: set LOOPWRIGHT_BASE_MODEL to the former"
            )
        return replace(run.config, base=str(self.base.path))

    def _finish(self, status: int) -> None:
        folder = next(iter(self.folder.glob("*")), self.folder)
        self.process = None
        if status == ExitCode.DONE and (folder / COMPARISON).exists():
            comparison = json.loads((folder / COMPARISON).read_bytes())
            reproduced, message = bool(comparison["reproduced"]), str(comparison["message"])
        elif status == ExitCode.FAILED and (folder / FAILURE_REASON).exists():
            reproduced, message = False, (folder / FAILURE_REASON).read_text(encoding="utf-8")
        else:
            last_line = _last_line(folder / REPRODUCE_LOG)
            reproduced, message = False, f"the process ended with status {status}: {last_line}"
        remove(self.folder)
        outcome = "is reproduced" if reproduced else "is not reproduced"
        self.commands.settle(
            [self.command_id], "done" if reproduced else "failed", f"{self.version} {outcome}: {message}"
        )
        log.info("reproduction_ended", version=self.version, reproduced=reproduced, message=message)


def _last_line(file: Path) -> str:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
    return lines[-1][:300] if lines else "no output"
