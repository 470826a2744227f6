"""Releases from quarantine: operators let examples train that a check quarantined, from the next run on.

A release covers one event and one check; the other checks still apply to that event. It stores no text, and it ends
when an erasure removes the event from its batch, so it does not cover a later event with the same id.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from typing import Final

from services.trainer.commands.command_table import CommandKind, CommandTable
from services.trainer.dataset import batch_table, feedback_counts
from services.trainer.dataset.filters import QuarantinedRow, check_of
from services.trainer.new_data import NewDataCounter
from services.trainer.run import run_quarantine

NO_LIMIT: Final = -1
"""SQLite's LIMIT for all rows."""


def run_commands(commands: CommandTable, counter: NewDataCounter) -> None:
    """Execute the pending release commands, once everything is counted.

    Commands that were answered before the table was lost are executed again, to rebuild the table of releases; their
    results are not published again.
    """
    for command_id in commands.pending(CommandKind.RELEASE, skip_answered=False):
        with commands.db, counter.counting():
            released, message = release(commands.db, commands.responses_to_release(command_id))
            commands.decide([command_id], "done" if released else "refused", message)


def newest_release(db: sqlite3.Connection) -> int:
    """Return the number of the newest release. Numbers only grow."""
    return int(db.execute("SELECT COALESCE(MAX(number), 0) FROM releases").fetchone()[0])


def releasable(
    db: sqlite3.Connection, limit: int, response_ids: Sequence[str] | None = None
) -> list[QuarantinedRow]:
    """Return the first quarantined rows that can be released, each once and in order; optionally of these responses.

    Checks of a single row are those of the collected data. Rows quarantined because users disagree are those of the
    newest run.
    """
    rows = [
        *feedback_counts.releasable(db, limit, response_ids),
        *run_quarantine.releasable(db, limit, response_ids),
    ]
    ordered = sorted(set(rows), key=lambda row: (row.response_id, row.event_id, row.reason))
    return ordered if limit == NO_LIMIT else ordered[:limit]


def release(db: sqlite3.Connection, response_ids: Sequence[str]) -> tuple[bool, str]:
    """Release the quarantined rows of these responses, inside the caller's transaction.

    Returns whether there were any, and the message for the operator.
    """
    requested = sorted(set(response_ids))
    rows = releasable(db, NO_LIMIT, requested)
    db.executemany(
        "INSERT OR IGNORE INTO releases (response_id, event_id, passes) VALUES (?, ?, ?)",
        [(row.response_id, row.event_id, check_of(row.reason)) for row in rows],
    )
    feedback_counts.mark_uncounted(db, {row.response_id for row in rows})
    if not rows:
        return False, f"none of these {len(requested)} responses has a quarantined row that can be released"
    counts = Counter(row.reason for row in rows)
    reasons = ", ".join(f"{count} ({reason})" for reason, count in sorted(counts.items()))
    responses = len({row.response_id for row in rows})
    return True, (
        f"released {reasons}, of {responses} of {len(requested)} responses; they train from the next run on"
    )


def remove_orphaned(db: sqlite3.Connection) -> int:
    """Delete the releases of events that are in no batch any more, inside the caller's transaction.

    Returns how many were deleted.
    """
    rows = db.execute("SELECT number, response_id, event_id FROM releases").fetchall()
    orphaned = [
        (number, response_id)
        for number, response_id, event_id in rows
        if not batch_table.has_signal_of_event(db, response_id, event_id)
    ]
    db.executemany("DELETE FROM releases WHERE number = ?", [(number,) for number, _ in orphaned])
    feedback_counts.mark_uncounted(db, {response_id for _, response_id in orphaned})
    return len(orphaned)
