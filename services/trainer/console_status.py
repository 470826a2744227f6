"""Live status of the collected data for the console: progress towards the next run, and the quarantine."""

from __future__ import annotations

import sqlite3
from datetime import datetime
from typing import Final

from services.trainer.commands.quarantine_release import releasable
from services.trainer.core.recipe import CommentMode, Thresholds
from services.trainer.core.trigger import NewData
from services.trainer.dataset import batch_table
from services.trainer.dataset.filters import RELEASABLE, QuarantinedRow, check_of, count_reasons, usable_rows
from services.trainer.run import run_table
from shared.live_status import CollectedStatus, QuarantinedEvent, QuarantineStatus

MAX_LISTED: Final = 1000
"""Maximum number of listed events; one command can release this many."""
RUN_CHECKS: Final = frozenset({"agreement", "share", "reserved", "held out", "tokens"})
"""Checks that only a run makes, so their results are those of the newest run. The others are made here, on all data."""


def console_status(
    db: sqlite3.Connection,
    new: NewData,
    thresholds: Thresholds,
    comments: CommentMode,
    reason: str,
    now: datetime,
) -> tuple[CollectedStatus, QuarantineStatus]:
    """Return the live status of the console. `reason` says why a run starts, or why it does not."""
    examples = batch_table.current_examples(db, batch_table.through(db))
    _, quarantined = usable_rows(examples, comments)
    of_run = [
        row
        for row in (QuarantinedRow(*fields) for fields in run_table.newest_quarantine(db))
        if check_of(row.reason) in RUN_CHECKS
    ]
    can_be_released = releasable(examples, [*quarantined, *of_run])
    quarantined += [row for row in of_run if check_of(row.reason) not in RELEASABLE or row in can_be_released]
    collected = CollectedStatus(
        usable=new.examples,
        needed=thresholds.examples,
        users=new.users,
        users_needed=thresholds.users,
        examples=len(examples),
        held=count_reasons(quarantined),
        batches=batch_table.batch_count(db),
        reason=reason,
        updated_at=now,
    )
    events = [QuarantinedEvent(row.response_id, row.event_id, row.reason) for row in can_be_released]
    return collected, QuarantineStatus(held=tuple(events[:MAX_LISTED]), total=len(events), updated_at=now)
