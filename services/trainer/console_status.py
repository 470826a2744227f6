"""What the console shows of what is collected: the threshold bar, what is held back, and what of it can be released."""

from __future__ import annotations

import sqlite3
from datetime import datetime

from services.trainer.commands.quarantine_release import releasable
from services.trainer.core.recipe import CommentMode, Thresholds
from services.trainer.core.trigger import NewData
from services.trainer.dataset import batch_table
from services.trainer.dataset.filters import RELEASABLE, QuarantinedRow, check_of, count_reasons, usable_rows
from services.trainer.run import run_table
from shared.live_status import CollectedStatus, QuarantinedEvent, QuarantineStatus

MAX_LISTED = 1000
"""What one command may release."""
LATER = frozenset({"agreement", "share", "reserved", "held out", "tokens"})
"""What is held for these is known since the newest run; the other checks are made on all there is."""


def console_status(
    db: sqlite3.Connection,
    waiting: NewData,
    thresholds: Thresholds,
    comments: CommentMode,
    reason: str,
    now: datetime,
) -> tuple[CollectedStatus, QuarantineStatus]:
    """Return the live status of the console. `reason` says why a run starts, or why it does not."""
    examples = batch_table.current_examples(db, batch_table.through(db))
    _, held = usable_rows(examples, comments)
    later = [
        one
        for one in (QuarantinedRow(*found) for found in run_table.newest_quarantine(db))
        if check_of(one.reason) in LATER
    ]
    found = releasable(examples, [*held, *later])
    held += [one for one in later if check_of(one.reason) not in RELEASABLE or one in found]
    collected = CollectedStatus(
        usable=waiting.examples,
        needed=thresholds.examples,
        users=waiting.users,
        users_needed=thresholds.users,
        examples=len(examples),
        held=count_reasons(held),
        batches=batch_table.batch_count(db),
        reason=reason,
        updated_at=now,
    )
    listed = tuple(QuarantinedEvent(one.response_id, one.event_id, one.reason) for one in found[:MAX_LISTED])
    return collected, QuarantineStatus(held=listed, total=len(found), updated_at=now)
