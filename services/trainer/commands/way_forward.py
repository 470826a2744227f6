"""What follows from a verdict that did not promote (`core/way_forward.py`), read from tables and the log.

Another gate is a command on `operator.commands`, like those of operators and of the rollout. Its id counts the
trainer's commands for the version, so however often the trainer crashes in between, each gate is requested once.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from services.trainer.commands.command_table import ACK_TIMEOUT_S
from services.trainer.core.way_forward import NewestVersion, WayForward, way_forward
from services.trainer.dataset import feedback_counts
from services.trainer.gate.limits import gate_alpha, min_clusters
from services.trainer.run import run_table
from services.trainer.run.folder import GATE_RESULT
from services.trainer.run.run_table import Run
from services.trainer.settings import TrainerSettings
from services.trainer.versions.publish import SERVICE, VersionLog
from shared.cloudevents import cloudevent
from shared.commands import GateAgain
from shared.events import from_ms, sha256
from shared.ports import Clock, Publisher
from shared.topics import OPERATOR_COMMANDS
from shared.versions import GateReport, VersionRef

VOTE: Final = "user_votes"
"""The figure that holds if the version won the vote against stable."""
STABLE_INTERVAL_S: Final = 30.0
"""Time between two reads of the log to learn whether stable has changed."""
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Outlook:
    """What follows, and from which run and report."""

    forward: WayForward
    run: Run
    report: GateReport
    gates: int


@dataclass(slots=True)
class WayForwardReader:
    """Reads what follows from the verdict on the line's newest version. Costs next to nothing while nothing changes."""

    settings: TrainerSettings
    db: sqlite3.Connection
    versions: VersionLog
    publisher: Publisher
    clock: Clock
    stable: Callable[[], VersionRef]
    """Reads the line's stable version from the log."""
    _read_at: int = -1
    """`Connection.total_changes` at which `_outlook` was read."""
    _outlook: Outlook | None = None
    _requested: set[str] = field(default_factory=set)
    """Commands that this process has published. They are in the table once they are read back."""
    _stale_until_ms: int = 0
    """Until then the log is not read again: the last time, the version's report was not against stable."""

    def read(self) -> Outlook | None:
        """Return what follows by itself, or None if the newest version passed or there is none."""
        if self.db.total_changes != self._read_at:
            self._outlook = self._read()
            self._read_at = self.db.total_changes
        return self._outlook

    def _read(self) -> Outlook | None:
        run = run_table.newest_published(self.db)
        file = self.settings.runs / run.config.run_id / GATE_RESULT if run is not None else None
        if run is None or run.version is None or file is None or not file.exists():
            return None
        report = GateReport.model_validate_json(file.read_bytes())
        if report.verdict == "passed":
            return None
        test = report.test
        items = test.wins + test.losses + test.ties if test is not None else 0
        through = self._through(run, report)
        arrived = feedback_counts.held_out_since(self.db, through)
        more_users = 0
        if report.alpha is None:
            more_users = max(
                0, min_clusters(gate_alpha(report.look)) - (test.users if test is not None else 0)
            )
        gates = self._own_gates(run.version)
        version = NewestVersion(
            run.version,
            report.verdict,
            report.reasons,
            items,
            report.more_items,
            more_users,
            arrived.gate_items,
            feedback_counts.held_out_users_since(self.db, through) if more_users else 0,
            gates,
            is_better=report.control_state != "not_passed"
            and any(figure.name == VOTE and figure.passed for figure in report.figures),
            lost=frozenset(figure.name for figure in report.figures if figure.passed is False),
            runs=run_table.retries_of(self.db, run.config),
            recipe=run.config.recipe,
        )
        forward = way_forward(
            version, self.settings.recipe(), self.settings.gate_again_limit, self.settings.retry_limit
        )
        newest = run_table.newest(self.db)
        if forward.action == "train_again" and (run.config.replaces or newest is None or newest != run):
            forward = (
                WayForward()
            )  # a later run has failed on newer data, or an erasure asks for another version
        return Outlook(forward, run, report, gates)

    def _through(self, run: Run, report: GateReport) -> dict[str, int]:
        """Return up to which batch of each partition the version's last gate read."""
        row = self.db.execute(
            "SELECT through FROM gates_again WHERE run_id = ? AND number = ?",
            (run.config.run_id, report.number),
        ).fetchone()
        return run_table.parse_through(row[0]) if row is not None else dict(run.config.through)

    def _own_gates(self, version: str) -> int:
        prefix = _command_id(version, "")
        row = self.db.execute(
            "SELECT COUNT(*) FROM command_versions WHERE version = ? AND substr(command_id, 1, ?) = ?",
            (version, len(prefix), prefix),
        )
        return int(row.fetchone()[0])

    def is_current(self, outlook: Outlook) -> bool:
        """Return whether the report is the version's last one, against the version that is stable now. Reads the log.

        Rarely, if it is not. Raises `BrokerUnavailable`.
        """
        now_ms = self.clock.now_ms()
        if now_ms < self._stale_until_ms:
            return False
        version = self.versions.version_of_run(outlook.run.config.run_id)
        gate = version.gate if version is not None else None
        current = (
            gate is not None
            and gate.number == outlook.report.number
            and gate.gated_against == self.stable().version
        )
        if not current:
            self._stale_until_ms = now_ms + round(STABLE_INTERVAL_S * 1000)
        return current

    def request_gate(self, outlook: Outlook) -> None:
        """Publish the command that gates the version again, once. Raises `BrokerUnavailable`."""
        version = str(outlook.run.version)
        command_id = _command_id(version, str(outlook.gates + 1))
        if command_id in self._requested:
            return
        now = from_ms(self.clock.now_ms())
        command = GateAgain(
            line=self.settings.line,
            command_id=command_id,
            issued_by=SERVICE,
            issued_at=now,
            version=version,
            reason=outlook.forward.reason[:500],
        )
        record = cloudevent(
            OPERATOR_COMMANDS, command.line, command, source=SERVICE, ce_id=command_id, at=now, partition=0
        )
        self.publisher.publish(record).result(ACK_TIMEOUT_S)
        self._requested.add(command_id)
        log.info("gate_requested", version=version, command_id=command_id, reason=command.reason)


def _command_id(version: str, number: str) -> str:
    return f"gate-again-trainer-{sha256(version.encode())[:16]}-{number}"
