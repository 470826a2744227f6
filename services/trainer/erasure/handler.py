"""Follows erasures in what the trainer keeps, and reports them.

What holds, once a request is reported: no file of this trainer has a row of the subject that the collected table does
not have, and none will get one.

- The collected table has lost the rows before: a request is due only when every rewritten batch is here.
- A run that has its snapshot is looked at: if it holds such rows it is ended, and another begins in its place; if not,
  nothing that it writes later can hold them, for it reads no rows but those of its snapshot.
- A run that has not may be reading the table at this very moment: its process is stopped and begins again, from the
  table as it is now.
- A run whose snapshot has a row that the table lost is never published, whether or not its request is due yet.
- An export is written by this same process, from the table as it is then.
- A revision of a comment is written by a run's process that has no snapshot yet, so none is written meanwhile.
- Each step may be repeated, and the report comes last: a crash anywhere begins again at the first.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from services.trainer.commands import quarantine_release
from services.trainer.database import scrub
from services.trainer.dataset import batch_table, export_files, rewrite_cache, snapshot
from services.trainer.dataset.erasure_target import ErasureTarget
from services.trainer.dataset.filters import Row
from services.trainer.erasure import redact_run, requests
from services.trainer.files import remove
from services.trainer.run import run_table
from services.trainer.run.folder import GATE_TEXTS
from services.trainer.versions.publish import VersionLog
from shared.events import ErasureReport, from_ms
from shared.ports import Clock
from shared.versions import ModelVersion

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ErasureHandler:
    """`folder` holds the runs' folders, `exported` the exports."""

    line: str
    db: sqlite3.Connection
    folder: Path
    exported: Path
    versions: VersionLog
    clock: Clock

    def due(self) -> list[ErasureTarget]:
        """What can be followed now."""
        return requests.due_targets(self.db)

    def concerns(self, run_id: str, targets: Sequence[ErasureTarget]) -> bool:
        """Whether the run's snapshot, which is complete, holds rows that are to go. Notes for which requests."""
        found = redact_run.find_affected(self.folder / run_id, targets, self._stands).held()
        requests.record_run(self.db, run_id, found)
        return bool(found)

    def outdated(self, run_id: str) -> bool:
        """Whether the run's snapshot has any row that was taken out of its batch since."""
        rows = redact_run.rows_of(self.folder / run_id)
        return batch_table.has_rewrites(self.db) and not all(self._stands(one.row) for one in rows)

    def follow(self, targets: Sequence[ErasureTarget], open_run: str | None) -> bool:
        """Takes the targets out of all that is kept but the open run, which `concerns` has cleared, and reports them.
        False if somebody reads the table: try again. Raises `BrokerUnavailable`."""
        self._sweep(targets, open_run)
        self._sweep_exports(targets)
        rewrite_cache.delete(self.folder.parent / rewrite_cache.FOLDER, targets, self._stands)
        with self.db:
            quarantine_release.remove_orphaned(self.db)
        if not scrub(self.db):
            return False
        versions = self.versions.versions()
        reports = [self._report(target, versions) for target in targets]
        self.versions.publish_erasure_reports(reports)
        requests.mark_reported(self.db, [target.request_id for target in targets])
        for report in reports:
            log.info(
                "erased", request_id=report.request_id, snapshots=report.snapshots, versions=report.versions
            )
        return True

    def _stands(self, row: Row) -> bool:
        return batch_table.has_signal(self.db, row.response_id, row.revision, row.event_id, row.user_id)

    def _sweep(self, targets: Sequence[ErasureTarget], open_run: str | None) -> None:
        closed = [path for path in self._folders() if path.name != open_run]
        for folder in closed:
            redact_run.remove_leftovers(folder)
            if snapshot.is_complete(folder):
                self.concerns(folder.name, targets)
        noted = [requests.affected_runs(self.db, target.request_id) for target in targets]
        held = {run_id for found in noted for run_id in found}
        trained = {run_id for found in noted for run_id, it_did in found.items() if it_did}
        unborn = run_table.erased_runs(self.db)
        for folder in closed:
            if folder.name in unborn:
                remove(folder)
            elif folder.name in held and snapshot.is_complete(folder):
                redact_run.redact(folder, targets, self._stands)
            elif redact_run.stable_run_of(folder) in trained:
                # What a version said at the gate may be what it was trained to say.
                for name in GATE_TEXTS:
                    remove(folder / name)

    def _sweep_exports(self, targets: Sequence[ErasureTarget]) -> None:
        for folder in export_files.remove_unfinished(self.exported):
            found = export_files.affected_requests(folder, targets, self._stands)
            if found:
                name = f"export-{folder.name}"
                requests.record_run(self.db, name, [(request_id, False) for request_id in sorted(found)])
                export_files.redact(folder, targets, self._stands)

    def _folders(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*") if path.is_dir())

    def _report(self, target: ErasureTarget, versions: Sequence[ModelVersion]) -> ErasureReport:
        held = requests.affected_runs(self.db, target.request_id)
        batches = requests.rewritten_batches(self.db, target.request_id)
        affected = [
            version.ref.version
            for version in versions
            if version.run_id is not None
            and (held.get(version.run_id, False) or self._may_have_trained(version, batches))
        ]
        return ErasureReport(
            line=self.line,
            request_id=target.request_id,
            kind=target.kind,
            subject=target.subject,
            response_id=target.response_id,
            event_id=target.event_id,
            service="trainer",
            versions=tuple(affected),
            snapshots=len(held),
            completed_at=from_ms(self.clock.now_ms()),
        )

    def _may_have_trained(self, version: ModelVersion, batches: Sequence[str]) -> bool:
        """Where the snapshot of a version is lost, all that is known is which batches it read: rather one too many."""
        lost = version.run_id is not None and not snapshot.is_complete(self.folder / version.run_id)
        return lost and version.dataset is not None and any(map(version.dataset.holds, batches))
