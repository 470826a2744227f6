"""Gate a version again: evaluate it against the version that is stable now, and publish the new report.

The rollout issues this command for a version that passed its gate against a version that no longer serves, the trainer
itself for one whose gate had too little feedback (`way_forward.py`), and an operator for any. The version stays as it
is. Its held-out items are those that have been collected until then.

A report gets its number before the process starts, and is published once: if the trainer ends between publishing and
the command's result, the next start finds the number on the log.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from services.trainer.commands import quarantine_release
from services.trainer.commands.command_table import CommandKind, CommandStatus
from services.trainer.commands.version_task import NotPossible, VersionTask
from services.trainer.dataset import batch_table, snapshot_files
from services.trainer.dataset.snapshot_files import HELDOUT_ROWS
from services.trainer.files import remove, write_whole
from services.trainer.run.folder import ADAPTER, CONTROL, GATE_AGAIN_LOG, GATE_RESULT, GATE_TEXTS
from services.trainer.run.run_table import RunConfig
from services.trainer.versions.gate_looks import next_look, tests_of
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
    earlier_tests: int = field(default=0, kw_only=True)
    """Gates of the version before this one that had enough items to test."""

    def config_of(self, version: ModelVersion, records: LineRecords) -> RunConfig:
        """Return the configuration of the version's run, with the present stable version and the present batches.

        Raises `NotPossible`.
        """
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
        self.earlier_tests = tests_of(version.gate) if version.gate is not None else 0
        stable_run = next((each.run_id for each in records.versions if each.ref == stable), None)
        config = self.config_of_run(version)
        replaces = config.replaces if stable == config.stable else None
        return replace(
            config,
            through=batch_table.through(self.db),
            released=quarantine_release.newest_release(self.db),
            stable=stable,
            stable_run=stable_run,
            replaces=replaces,
            gate_look=next_look(records.versions, stable),
        )

    def begin(self, command_ids: Sequence[str], config: RunConfig) -> None:
        """Record the number of the report that the process makes, and the batches that it reads."""
        with self.db:
            self.db.executemany(
                "INSERT OR REPLACE INTO gates_again VALUES (?, ?, ?, ?)",
                [
                    (command_id, config.run_id, self.number, json.dumps(dict(config.through)))
                    for command_id in command_ids
                ],
            )

    def earlier_result(self, command_id: str, version: str) -> tuple[CommandStatus, str] | None:
        """Return the result of a gate whose report was published before the trainer ended."""
        begun = self.db.execute(
            "SELECT run_id, number FROM gates_again WHERE command_id = ?", (command_id,)
        ).fetchone()
        if begun is None:
            return None
        run_id, number = begun
        report = self.read_line_records().find(version).gate
        if report is None or report.number < number:
            return None
        self._keep_report(self.settings.runs / run_id, report)
        return "done", _message(version, report)

    def result_of(self, folder: Path) -> tuple[CommandStatus, str] | None:
        """Keep the evaluated rows, the texts and the control in the run's folder, and publish the report.

        The rows come first: an erasure finds by them whose text the report contains.
        """
        if not (folder / GATE_RESULT).exists():
            return None
        measured = GateReport.model_validate_json((folder / GATE_RESULT).read_bytes())
        run_folder = self.settings.runs / folder.name
        for name in (HELDOUT_ROWS, *GATE_TEXTS):
            if (folder / name).exists():
                write_whole(run_folder / name, (folder / name).read_bytes())
        if (folder / CONTROL / ADAPTER).exists():
            remove(run_folder / CONTROL)
            (folder / CONTROL).rename(run_folder / CONTROL)
        numbered = {"number": self.number, "earlier_tests": self.earlier_tests}
        report = self.publish(self.version, measured.model_copy(update=numbered))
        self._keep_report(run_folder, report)
        return "done", _message(self.version, report)

    def _keep_report(self, run_folder: Path, report: GateReport) -> None:
        if run_folder.exists():
            write_whole(
                run_folder / GATE_RESULT, report.model_dump_json(indent=1, exclude_none=True).encode()
            )


def _message(version: str, report: GateReport) -> str:
    reasons = f": {'; '.join(report.reasons)}" if report.reasons else ""
    return f"{version} {report.verdict} against {report.gated_against}{reasons}"
