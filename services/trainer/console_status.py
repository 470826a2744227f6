"""Live status of the collected data for the console: progress towards the next run, and the quarantine."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from services.trainer.commands.quarantine_release import releasable
from services.trainer.core.recipe import Thresholds
from services.trainer.core.trigger import examples_needed
from services.trainer.dataset import batch_table, feedback_counts
from services.trainer.dataset.filters import RELEASABLE, check_of
from services.trainer.new_data import NewDataCounter
from services.trainer.run import run_quarantine
from shared.live_status import CollectedStatus, QuarantinedEvent, QuarantineStatus

MAX_LISTED: Final = 1000
"""Maximum number of listed events; one command can release this many."""


MAX_LOAD: Final = 0.02
"""Share of the time that reading the quarantine may take. A large one is then shown some seconds late."""
CHEAP_S: Final = 0.02
"""A read that takes less is repeated after every change."""


@dataclass(slots=True)
class StatusReader:
    """Reader of the console's live status. Reads the quarantine only after a change, and less often if it is large."""

    db: sqlite3.Connection
    counter: NewDataCounter
    thresholds: Thresholds
    _held: dict[str, int] = field(default_factory=dict)
    _events: tuple[QuarantinedEvent, ...] = ()
    _total: int = 0
    _changes: int = -1
    """`Connection.total_changes` at which the quarantine was read."""
    _next_read_s: float = 0.0
    """Monotonic time before which it is not read again."""

    def read(self, reason: str, now: datetime) -> tuple[CollectedStatus, QuarantineStatus]:
        """Return the live status. `reason` says why a run starts, or why it does not."""
        new = self.counter.read()
        if self.db.total_changes != self._changes and time.monotonic() >= self._next_read_s:
            self._read_quarantine()
        collected = CollectedStatus(
            usable=new.examples,
            needed=examples_needed(new, self.thresholds),
            users=new.users,
            users_needed=self.thresholds.users,
            examples=feedback_counts.example_count(self.db),
            held=self._held,
            batches=batch_table.batch_count(self.db),
            reason=reason,
            updated_at=now,
        )
        return collected, QuarantineStatus(held=self._events, total=self._total, updated_at=now)

    def _read_quarantine(self) -> None:
        began_s = time.monotonic()
        self._changes = self.db.total_changes
        of_run = run_quarantine.reason_counts(self.db)
        self._held = dict(sorted((Counter(feedback_counts.reason_counts(self.db)) + Counter(of_run)).items()))
        self._total = feedback_counts.releasable_count(self.db) + sum(
            count for text, count in of_run.items() if check_of(text) in RELEASABLE
        )
        self._events = tuple(
            QuarantinedEvent(row.response_id, row.event_id, row.reason)
            for row in releasable(self.db, MAX_LISTED)
        )
        ended_s = time.monotonic()
        took_s = ended_s - began_s
        self._next_read_s = ended_s + (took_s / MAX_LOAD if took_s >= CHEAP_S else 0.0)
