"""Trains versions again where operators ask for it: one at a time, beside no run, in a scratch folder that goes after.

What a scratch folder holds is users' text: it is removed before an erasure is followed, at each start, and at the end.
The order stands until it is answered: what was interrupted begins again, and is refused if its rows were erased.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import structlog

from services.trainer.commands.command_table import REPRODUCE, CommandTable
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
from services.trainer.worker.launcher import start as start_process
from services.trainer.worker.launcher import stop
from shared.adapters.base_model import PinnedBase
from shared.errors import LoopwrightError, Rejected
from shared.ports import ArtifactStore
from shared.versions import ModelVersion

NOT_COPIED: Final = frozenset({CONFIG, GATE_RESULT, FAILURE_REASON, GATE_ANSWERS, RUN_LOG, ATTEMPTS})
"""Of a run's folder what has no part in its training."""
MAX_DISTANCE: Final = 0.05
"""How far apart the weights may be, as a share of their size, where another machine or other software rounds
otherwise. Chosen, not measured: docs/decisions/lineage.md says what is known."""
log = structlog.get_logger(__name__)


class NotReproducible(Rejected):
    """The version cannot be trained again here; the message says why."""

    code = "not_reproducible"


def start(scratch: Path) -> subprocess.Popen[bytes]:
    """Starts the process that trains again."""
    return start_process(scratch, "services.trainer.worker.reproduce", REPRODUCE_LOG)


@dataclass(slots=True)
class Reproducer:
    """Of one line. `published()` reads the log; `start_child(scratch)` starts the process."""

    settings: TrainerSettings
    base: PinnedBase
    db: sqlite3.Connection
    orders: CommandTable
    store: ArtifactStore
    published: Callable[[], LineRecords]
    start_child: Callable[[Path], subprocess.Popen[bytes]] = start
    child: subprocess.Popen[bytes] | None = None
    asked: tuple[str, str] | None = None
    """The command and the version that the process is for."""

    @property
    def busy(self) -> bool:
        """While it is, no run should begin: both would want the whole machine."""
        return self.child is not None

    @property
    def folder(self) -> Path:
        return self.settings.folder / "reproductions"

    def turn(self, *, free: bool) -> None:
        """Takes the end of what is under way, or begins what is asked for next where the machine is `free`. Where the
        log or the store is away the order is refused: it can be given again."""
        if self.child is not None:
            status = self.child.poll()
            if status is not None:
                self._end(status)
        elif free:
            self._next()

    def stop(self) -> None:
        """In order, and nothing of it is left. The order stands."""
        if self.child is not None:
            stop(self.child)
            self.child = None
        remove(self.folder)

    def _next(self) -> None:
        for command_id in self.orders.undecided(REPRODUCE):
            version = run_table.version_to_reproduce(self.db, command_id)
            try:
                self._begin(command_id, version)
            except (LoopwrightError, OSError) as error:
                remove(self.folder)
                self.orders.settle([command_id], "refused", f"{version} is not trained again: {error}")
                continue
            return

    def _begin(self, command_id: str, name: str) -> None:
        published = self.published()
        version = published.find(name)
        config = self._config(version, published)
        remove(self.folder)
        scratch = self.folder / config.run_id
        scratch.mkdir(parents=True)
        for path in (self.settings.runs / config.run_id).iterdir():
            if path.is_file() and path.name not in NOT_COPIED and not path.name.startswith("."):
                shutil.copyfile(path, scratch / path.name)
        shutil.copytree(self.store.fetch(version.ref.uri, version.ref.digest), scratch / ORIGINAL)
        write_whole(scratch / CONFIG, config.to_json().encode())
        self.asked = (command_id, name)
        self.child = self.start_child(scratch)
        log.info("reproduction_began", version=name, run_id=config.run_id)

    def _config(self, version: ModelVersion, published: LineRecords) -> RunConfig:
        """The run's own, on the base as it lies here. Raises `NotReproducible`."""
        if version.run_id is None:
            raise NotReproducible("it is the line's base, which was not trained here")
        left = read_snapshot_state(self.settings.runs / version.run_id, version.dataset)
        reasons = why_not_reproducible(version, left, published)
        if reasons:
            raise NotReproducible("; ".join(reasons))
        run = run_table.by_id(self.db, version.run_id)
        if run is None:
            raise NotReproducible("this trainer's table does not have its run")
        if run.config.base_digest != self.base.digest:
            raise NotReproducible(
                f"it was trained on the base {run.config.base_digest[:8]} and this trainer has "
                f"{self.base.digest[:8]}: set LOOPWRIGHT_BASE_MODEL to that one"
            )
        return replace(run.config, base=str(self.base.path))

    def _end(self, status: int) -> None:
        command_id, version = self.asked or ("", "")
        scratch = next(iter(self.folder.glob("*")), self.folder)
        self.child = None
        if status == 0 and (scratch / COMPARISON).exists():
            status_name, told = verdict(version, json.loads((scratch / COMPARISON).read_bytes()))
        elif status == ExitCode.FAILED and (scratch / FAILURE_REASON).exists():
            status_name, told = "failed", (scratch / FAILURE_REASON).read_text(encoding="utf-8")
        else:
            status_name, told = (
                "failed",
                f"its process ended with status {status}: {_last_words(scratch / REPRODUCE_LOG)}",
            )
        remove(self.folder)
        self.orders.settle([command_id], status_name, told)
        log.info("reproduction_ended", version=version, verdict=status_name, told=told)


def verdict(version: str, compared: Mapping[str, Any]) -> tuple[str, str]:
    """(`done` or `failed`, what to say). Under the same software on the same machine nothing but the same bytes will
    do; else the weights must be close, and what differed is named."""
    other = compared["differences"]
    digest = next((new for name, (_, new) in compared["files"].items() if name.endswith(".safetensors")), "")
    if compared["bitwise"]:
        also = f", though under {'; '.join(other)}" if other else ""
        return "done", f"{version} is reproduced bit by bit (weights {digest[:16]}){also}"
    apart = compared["distance"]
    unlike = ", ".join(name for name, (one, new) in compared["files"].items() if one != new)
    by = "in their shapes" if apart is None else f"by {apart:.2%} of their size"
    far = f"{unlike} {'are' if ',' in unlike else 'is'} not the same, its weights differ {by}"
    if not other:
        return "failed", f"{version} is not reproduced: {far}, under the same software on the same machine"
    under = f"trained under other conditions ({'; '.join(other)})"
    if apart is not None and apart <= MAX_DISTANCE:
        return "done", f"{version} is reproduced closely: {far} (at most {MAX_DISTANCE:.0%}), {under}"
    return "failed", f"{version} is not reproduced: {far} (more than {MAX_DISTANCE:.0%}), {under}"


def _last_words(file: Path) -> str:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
    return lines[-1][:300] if lines else "it said nothing"
