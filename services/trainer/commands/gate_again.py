"""Gate a version again: evaluate it against the version that is stable now, and publish the new report.

The rollout issues this command for a version that passed its gate against a version that no longer serves; an operator
may issue it too. The version stays as it is. Its held-out items are those of its own run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from services.trainer.commands.command_table import CommandKind, CommandStatus
from services.trainer.commands.version_task import NotPossible, VersionTask
from services.trainer.dataset import snapshot_files
from services.trainer.files import write_whole
from services.trainer.run.folder import GATE_AGAIN_LOG, GATE_RESULT, GATE_TEXTS
from services.trainer.run.run_table import RunConfig
from services.trainer.versions.gate_looks import next_look
from services.trainer.versions.lineage import LineRecords
from shared.versions import GateReport, ModelVersion, VersionRef


@dataclass(slots=True)
class GateRepeater(VersionTask):
    """Executes the gate_again commands of one line."""

    kind: ClassVar[CommandKind] = CommandKind.GATE_AGAIN
    folder_name: ClassVar[str] = "gates"
    log_name: ClassVar[str] = GATE_AGAIN_LOG
    refusal: ClassVar[str] = "gated again"

    stable: Callable[[], VersionRef] = field(kw_only=True)
    """Reads the line's stable version from the log."""
    publish: Callable[[str, GateReport], GateReport] = field(kw_only=True)
    """Publishes a version's report unless the log has one with its number. Returns the report on the log."""
    number: int = field(default=1, kw_only=True)
    """Number of the report that the process makes."""

    def config_of(self, version: ModelVersion, records: LineRecords) -> RunConfig:
        """Return the configuration of the version's run, with the present stable version. Raises `NotPossible`."""
        stable = self.stable()
        if version.run_id is None:
            raise NotPossible("it is the line's base, which the gate does not evaluate")
        if version.ref.version == stable.version:
            raise NotPossible("it is the stable version, with which others are compared")
        if records.erasures_of(version.ref.version):
            raise NotPossible("rows that it was trained on were erased: a new run replaces it")
        if not snapshot_files.is_complete(self.settings.runs / version.run_id):
            raise NotPossible("its snapshot is not on this trainer's disk")
        self.number = version.gate.number + 1 if version.gate is not None else 1
        stable_run = next((each.run_id for each in records.versions if each.ref == stable), None)
        config = self.config_of_run(version)
        replaces = config.replaces if stable == config.stable else None
        return replace(
            config,
            stable=stable,
            stable_run=stable_run,
            replaces=replaces,
            gate_look=next_look(records.versions, stable),
        )

    def result_of(self, folder: Path) -> tuple[CommandStatus, str] | None:
        """Publish the report, and keep it in the run's folder."""
        if not (folder / GATE_RESULT).exists():
            return None
        measured = GateReport.model_validate_json((folder / GATE_RESULT).read_bytes())
        report = self.publish(self.version, measured.model_copy(update={"number": self.number}))
        run_folder = self.settings.runs / folder.name
        for name in GATE_TEXTS:
            if (folder / name).exists():
                write_whole(run_folder / name, (folder / name).read_bytes())
        write_whole(run_folder / GATE_RESULT, report.model_dump_json(indent=1, exclude_none=True).encode())
        reasons = f": {'; '.join(report.reasons)}" if report.reasons else ""
        return "done", f"{self.version} {report.verdict} against {report.gated_against}{reasons}"
