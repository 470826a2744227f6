"""Reproduction: train a version again from its snapshot, by operator command, and compare the weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from services.trainer.commands.command_table import CommandKind, CommandStatus
from services.trainer.commands.version_task import NotPossible, VersionTask
from services.trainer.run.folder import COMPARISON, REPRODUCE_LOG
from services.trainer.run.run_table import RunConfig
from services.trainer.versions.lineage import LineRecords, read_snapshot_state, why_not_reproducible
from shared.versions import ModelVersion


@dataclass(slots=True)
class Reproducer(VersionTask):
    """Executes the reproduce commands of one line."""

    kind: ClassVar[CommandKind] = CommandKind.REPRODUCE
    folder_name: ClassVar[str] = "reproductions"
    log_name: ClassVar[str] = REPRODUCE_LOG
    refusal: ClassVar[str] = "reproduced"

    def config_of(self, version: ModelVersion, records: LineRecords) -> RunConfig:
        """Return the configuration of the version's run. Raises `NotPossible`."""
        if version.run_id is None:
            raise NotPossible("it is the line's base, which was not trained here")
        state = read_snapshot_state(self.settings.runs / version.run_id, version.dataset)
        reasons = why_not_reproducible(version, state, records)
        if reasons:
            raise NotPossible("; ".join(reasons))
        return self.config_of_run(version)

    def result_of(self, folder: Path) -> tuple[CommandStatus, str] | None:
        """Return whether the version is reproduced."""
        if not (folder / COMPARISON).exists():
            return None
        comparison = json.loads((folder / COMPARISON).read_bytes())
        if comparison["reproduced"]:
            return "done", f"{self.version} is reproduced: {comparison['message']}"
        return "failed", self.failure(comparison["message"])
