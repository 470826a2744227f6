"""Table of erasure requests: the processor's reports, and the runs and exports that each request affects.

A request is due once every partition has reported, and the batch table has each batch in the reported rewrite.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping

from services.trainer.dataset.erasure_target import ErasureTarget
from shared.events import ErasureReport


def store_report(db: sqlite3.Connection, report: ErasureReport, line: str) -> None:
    """Store a report of the processor with the batches of `line`, within the caller's transaction.

    Reports of other services are ignored: whether this trainer has reported is read from the log before it reports.
    """
    if report.service != "processor" or report.partition is None:
        return
    db.execute(
        "INSERT OR IGNORE INTO erasures (request_id, kind, subject, response_id, event_id, partitions) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        (
            report.request_id,
            report.kind,
            report.subject,
            report.response_id,
            report.event_id,
            report.partitions or 1,
        ),
    )
    db.execute("INSERT OR IGNORE INTO erasure_parts VALUES (?, ?)", (report.request_id, report.partition))
    db.executemany(
        "INSERT INTO erasure_batches VALUES (?, ?, ?) "
        "ON CONFLICT (request_id, batch_id) DO UPDATE SET rewrite = MAX(rewrite, excluded.rewrite)",
        [
            (report.request_id, batch_id, rewrite)
            for batch_id, rewrite in report.batches.items()
            if batch_id.rsplit("-", 2)[0] == line
        ],
    )


def due_targets(db: sqlite3.Connection) -> list[ErasureTarget]:
    """Return the requests that are due and not reported yet, in order of their ids."""
    rows = db.execute(
        "SELECT request_id, kind, subject, response_id, event_id FROM erasures AS e WHERE reported = 0 "
        "AND (SELECT COUNT(*) FROM erasure_parts AS p WHERE p.request_id = e.request_id) >= partitions "
        "AND NOT EXISTS (SELECT 1 FROM erasure_batches AS n LEFT JOIN batches AS b USING (batch_id) "
        "WHERE n.request_id = e.request_id AND COALESCE(b.rewrite, -1) < n.rewrite) ORDER BY request_id"
    )
    return [ErasureTarget(*row) for row in rows]


def rewritten_batches(db: sqlite3.Connection, request_id: str) -> list[str]:
    """Return the batches that a request rewrote."""
    rows = db.execute("SELECT batch_id FROM erasure_batches WHERE request_id = ?", (request_id,))
    return [batch_id for (batch_id,) in rows]


def record_run(db: sqlite3.Connection, run_id: str, affected: Mapping[str, bool]) -> None:
    """Record that a run or an export contains rows of requests: request_id -> whether any of them trained.

    Recorded before the rows are deleted, so that a crash in between does not lose which version is affected.
    """
    with db:
        db.executemany(
            "INSERT INTO erasure_runs VALUES (?, ?, ?) "
            "ON CONFLICT (request_id, run_id) DO UPDATE SET trained = MAX(trained, excluded.trained)",
            [(request_id, run_id, int(trained)) for request_id, trained in affected.items()],
        )


def affected_runs(db: sqlite3.Connection, request_id: str) -> dict[str, bool]:
    """Return the runs and exports that contained rows of a request: run_id -> whether any of them trained."""
    rows = db.execute("SELECT run_id, trained FROM erasure_runs WHERE request_id = ?", (request_id,))
    return {run_id: bool(trained) for run_id, trained in rows}


def mark_reported(db: sqlite3.Connection, request_ids: Iterable[str], versions: Iterable[str]) -> None:
    """Record that the trainer has reported these requests, and which versions they affect."""
    with db:
        db.executemany(
            "UPDATE erasures SET reported = 1 WHERE request_id = ?",
            [(request_id,) for request_id in request_ids],
        )
        db.executemany(
            "INSERT OR REPLACE INTO erased_versions VALUES (?, NULL)", [(version,) for version in versions]
        )


def is_erased_version(db: sqlite3.Connection, version: str) -> bool:
    """Return whether rows that a version was trained on were erased since."""
    return db.execute("SELECT 1 FROM erased_versions WHERE version = ?", (version,)).fetchone() is not None


def unanswered_versions(db: sqlite3.Connection) -> set[str]:
    """Return the versions that erasures affect and since then no run has begun, without those of erased runs."""
    return {version for (version,) in db.execute("SELECT version FROM erased_versions WHERE run_id IS NULL")}


def answer_versions(db: sqlite3.Connection, run_id: str) -> None:
    """Record that a run has begun without the erased rows, inside the caller's transaction."""
    db.execute("UPDATE erased_versions SET run_id = ? WHERE run_id IS NULL", (run_id,))


def reopen_versions(db: sqlite3.Connection, run_id: str) -> None:
    """Record that another erasure ended the run that had begun without the erased rows."""
    with db:
        db.execute("UPDATE erased_versions SET run_id = NULL WHERE run_id = ?", (run_id,))
