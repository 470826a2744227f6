"""Releases from quarantine: operators let examples train that a check quarantined, from the next run on.

A release covers one event and one check; the other checks still apply to that event. It stores no text, and it ends
when an erasure removes the event from its batch, so it does not cover a later event with the same id.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence

from services.trainer.commands.command_table import CommandKind, CommandTable
from services.trainer.core.recipe import CommentMode
from services.trainer.dataset import batch_table
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.filters import RELEASABLE, QuarantinedRow, check_of, usable_rows
from services.trainer.run import run_table


def run_commands(commands: CommandTable, comments: CommentMode) -> bool:
    """Execute the pending release commands. Returns whether there were any.

    Commands that were answered before the table was lost are executed again, to rebuild the table of releases; their
    results are not published again.
    """
    pending = commands.pending(CommandKind.RELEASE, skip_answered=False)
    for command_id in pending:
        with commands.db:
            released, message = release(
                commands.db,
                commands.responses_to_release(command_id),
                releasable_now(commands.db, comments),
            )
            commands.decide([command_id], "done" if released else "refused", message)
    return bool(pending)


def newest_release(db: sqlite3.Connection) -> int:
    """Return the number of the newest release. Numbers only grow."""
    return int(db.execute("SELECT COALESCE(MAX(number), 0) FROM releases").fetchone()[0])


def releasable_now(db: sqlite3.Connection, comments: CommentMode) -> list[QuarantinedRow]:
    """Return the quarantined rows that can be released now.

    Checks of a single row are made on the collected data. Rows quarantined because users disagree are those of the
    newest run.
    """
    examples = batch_table.current_examples(db, batch_table.through(db))
    quarantined = [
        *usable_rows(examples, comments)[1],
        *(QuarantinedRow(*row) for row in run_table.newest_quarantine(db)),
    ]
    return releasable(examples, quarantined)


def releasable(examples: Sequence[Example], quarantined: Iterable[QuarantinedRow]) -> list[QuarantinedRow]:
    """Return the rows of `quarantined` that can be released, each once and in order.

    Their check must allow it, their event must be in `examples`, and must not have been released from that check.
    """
    released_checks = {
        (example.revision.response_id, signal.event_id): example.released.get(signal.event_id, frozenset())
        for example in examples
        for signal in example.revision.signals
    }
    rows = {
        row
        for row in quarantined
        if check_of(row.reason) in RELEASABLE
        and check_of(row.reason) not in released_checks.get((row.response_id, row.event_id), RELEASABLE)
    }
    return sorted(rows, key=lambda row: (row.response_id, row.event_id, row.reason))


def release(
    db: sqlite3.Connection, response_ids: Iterable[str], quarantined: Iterable[QuarantinedRow]
) -> tuple[bool, str]:
    """Release the rows of `quarantined` that belong to these responses, inside the caller's transaction.

    Returns whether there were any, and the message for the operator.
    """
    requested = set(response_ids)
    rows = [row for row in quarantined if row.response_id in requested]
    db.executemany(
        "INSERT OR IGNORE INTO releases (response_id, event_id, passes) VALUES (?, ?, ?)",
        [(row.response_id, row.event_id, check_of(row.reason)) for row in rows],
    )
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
        (number,)
        for number, response_id, event_id in rows
        if not batch_table.has_signal_of_event(db, response_id, event_id)
    ]
    db.executemany("DELETE FROM releases WHERE number = ?", orphaned)
    return len(orphaned)
