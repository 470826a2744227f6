"""Applies erasures to everything that the trainer stores, and reports them.

Once a request is reported, no file of this trainer contains a row of the subject that the batch table does not have,
and none will. This holds because:

- A request is due only when the batch table has every rewritten batch, so the table has lost the rows already.
- A run with a snapshot is inspected. If it contains such rows, it is ended and another begins in its place; if not,
  nothing that it writes later can contain them, because it reads no other rows.
- A run without a snapshot may be reading the table right now, so its process is stopped and starts again.
- A run whose snapshot has a row that the table lost is never published, whether or not its request is due yet.
- Exports are written by this process, from the table as it is then.
- Rewrites of comments are written by a run that has no snapshot yet, so none are written meanwhile.
- Every step can be repeated, and the report comes last, so after a crash all steps run again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from services.trainer.commands import quarantine_release
from services.trainer.database import scrub
from services.trainer.dataset import batch_table, export_files, rewrite_cache, snapshot_files
from services.trainer.dataset.erasure_target import ErasureTarget
from services.trainer.dataset.filters import Row
from services.trainer.erasure import redact_run, requests
from services.trainer.files import remove
from services.trainer.run import run_table
from services.trainer.run.folder import GATE_TEXTS
from services.trainer.settings import JUDGE_REPLIES
from services.trainer.versions.publish import VersionLog
from shared.events import ErasureReport, from_ms
from shared.ports import Clock
from shared.versions import ModelVersion

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ErasureHandler:
    """Erasures of one line. `runs` contains the folders of runs, `exports` those of exports."""

    line: str
    db: sqlite3.Connection
    runs: Path
    exports: Path
    versions: VersionLog
    clock: Clock

    def due_targets(self) -> list[ErasureTarget]:
        """Return the targets that can be applied now."""
        return requests.due_targets(self.db)

    def affects(self, run_id: str, targets: Sequence[ErasureTarget]) -> bool:
        """Return whether a run's complete snapshot contains rows to delete, and record for which requests."""
        affected = redact_run.affected_requests(self.runs / run_id, targets, self._is_current)
        requests.record_run(self.db, run_id, affected)
        return bool(affected)

    def has_erased_rows(self, run_id: str) -> bool:
        """Return whether a run's snapshot contains any row that was deleted from its batch since."""
        rows = redact_run.rows_of(self.runs / run_id)
        return batch_table.has_rewrites(self.db) and not all(self._is_current(one.row) for one in rows)

    def apply(self, targets: Sequence[ErasureTarget], open_run: str | None) -> bool:
        """Delete the targets from everything but the open run, which `affects` has cleared, and report them.

        Returns False if another process reads the database: then nothing was reported, and the caller must try again.
        Raises `BrokerUnavailable`.
        """
        self._redact_runs(targets, open_run)
        self._redact_exports(targets)
        rewrite_cache.redact(self.runs.parent / rewrite_cache.FOLDER, targets, self._is_current)
        self._remove_judge_replies()
        with self.db:
            quarantine_release.remove_orphaned(self.db)
        if not scrub(self.db):
            return False
        versions = self.versions.versions()
        reports = [self._report(target, versions) for target in targets]
        self.versions.publish_erasure_reports(reports)
        requests.mark_reported(
            self.db,
            [target.request_id for target in targets],
            {version for report in reports for version in report.versions},
        )
        for report in reports:
            log.info(
                "erased", request_id=report.request_id, snapshots=report.snapshots, versions=report.versions
            )
        return True

    def _is_current(self, row: Row) -> bool:
        return batch_table.has_signal(self.db, row.response_id, row.revision, row.event_id, row.user_id)

    def _redact_runs(self, targets: Sequence[ErasureTarget], open_run: str | None) -> None:
        closed = [path for path in self._run_folders() if path.name != open_run]
        for folder in closed:
            redact_run.remove_leftovers(folder)
            if snapshot_files.is_complete(folder):
                self.affects(folder.name, targets)
        recorded = [requests.affected_runs(self.db, target.request_id) for target in targets]
        affected = {run_id for runs in recorded for run_id in runs}
        trained = {run_id for runs in recorded for run_id, has_trained in runs.items() if has_trained}
        ended_by_erasure = run_table.erased_runs(self.db)
        for folder in closed:
            if folder.name in ended_by_erasure:
                remove(folder)
            elif folder.name in affected and snapshot_files.is_complete(folder):
                redact_run.redact(folder, targets, self._is_current)
            elif not trained.isdisjoint(self._compared_runs(folder)):
                # At the gate the stable version may have answered with what it was trained on.
                for name in GATE_TEXTS:
                    remove(folder / name)

    def _remove_judge_replies(self) -> None:
        """Delete the judge model's replies. Their names are digests, which show whether a given text was judged.

        A gate may write replies meanwhile, so the folder is renamed first.
        """
        folder = self.runs.parent / JUDGE_REPLIES
        renamed = folder.with_name(f".{JUDGE_REPLIES}")
        remove(renamed)
        if folder.exists():
            folder.rename(renamed)
            remove(renamed)

    def _compared_runs(self, folder: Path) -> set[str | None]:
        """Return the runs of the versions that a run's version was gated against."""
        name = redact_run.gated_against(folder)
        last = run_table.by_version(self.db, name) if name is not None else None
        return {redact_run.stable_run_of(folder), last.config.run_id if last is not None else None}

    def _redact_exports(self, targets: Sequence[ErasureTarget]) -> None:
        for folder in export_files.remove_unfinished(self.exports):
            affected = export_files.affected_requests(folder, targets, self._is_current)
            if affected:
                name = f"export-{folder.name}"
                requests.record_run(self.db, name, dict.fromkeys(sorted(affected), False))
                export_files.redact(folder, targets, self._is_current)

    def _run_folders(self) -> list[Path]:
        return sorted(path for path in self.runs.glob("*") if path.is_dir())

    def _report(self, target: ErasureTarget, versions: Sequence[ModelVersion]) -> ErasureReport:
        runs = requests.affected_runs(self.db, target.request_id)
        batches = requests.rewritten_batches(self.db, target.request_id)
        affected = [
            version.ref.version
            for version in versions
            if version.run_id is not None
            and (runs.get(version.run_id, False) or self._may_have_trained(version, batches))
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
            snapshots=len(runs),
            completed_at=from_ms(self.clock.now_ms()),
        )

    def _may_have_trained(self, version: ModelVersion, batches: Sequence[str]) -> bool:
        """Return whether a version whose snapshot is lost read any of these batches.

        Which of their rows it trained is not known then, so a report may name a version too many, but never misses one.
        """
        lost = version.run_id is not None and not snapshot_files.is_complete(self.runs / version.run_id)
        return lost and version.dataset is not None and any(map(version.dataset.holds, batches))
