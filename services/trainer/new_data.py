"""The usable data that is new since the last run, or since the last dataset if the trainer only exports."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from services.trainer.core.trigger import NewData
from services.trainer.dataset import feedback_counts
from services.trainer.dataset.feedback_changes import Limits
from services.trainer.dataset.feedback_counts import UsableRows
from services.trainer.dataset.objectives import enough_for_kto
from services.trainer.gate.limits import MAX_PAIRS, gate_alpha, min_clusters
from services.trainer.gate.power import GateSize, describe
from services.trainer.run import run_table
from services.trainer.settings import TrainerSettings

PORTION: Final = 1000
"""Responses counted at a time when everything is counted again, so that the service does other work in between."""


@dataclass(slots=True)
class NewDataCounter:
    """Reader of the counts, and caller of what keeps them complete. Costs next to nothing while nothing changes."""

    db: sqlite3.Connection
    settings: TrainerSettings
    _counts: NewData | None = None
    _changes: int = field(default=-1)
    """`Connection.total_changes` for which `_counts` was read. This connection is the only one that writes."""

    def __post_init__(self) -> None:
        feedback_counts.prepare(self.db, self.settings.comment_mode, self.settings.largest_max_tokens)

    def count_portion(self) -> int:
        """Count the next responses that are not counted, in a transaction. Return how many are left."""
        if feedback_counts.is_complete(self.db):
            return 0
        with self.db:
            self._count_next()
        return feedback_counts.uncounted(self.db)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what the block stores or releases, inside the caller's transaction.

        If other responses are still to be counted, those of the block are counted after them (`count_portion`).
        """
        was_complete = feedback_counts.is_complete(self.db)
        yield
        while was_complete and self._count_next():
            pass

    def _count_next(self) -> int:
        settings = self.settings
        return feedback_counts.count_stale(
            self.db, settings.line, settings.comment_mode, PORTION, settings.largest_max_tokens
        )

    def read(self) -> NewData:
        """Return the counts. They lack what is not counted yet (`count_portion`)."""
        if self._counts is None or self.db.total_changes != self._changes:
            feedback_counts.set_limits(self.db, self._limits())
            self._counts = self._read()
            self._changes = self.db.total_changes
        return self._counts

    def _limits(self) -> Limits:
        if self.settings.mode == "export":
            return Limits(run_table.newest_export(self.db)[0], None)
        return Limits(run_table.newest_through(self.db), run_table.newest_release(self.db))

    def _read(self) -> NewData:
        rows = feedback_counts.usable_rows(self.db)
        # Whether disliked answers train depends on the labels of all rows, not only of the new ones.
        disliked = self.settings.mode == "export" or enough_for_kto(
            rows.all.get(1, 0), rows.all.get(0, 0), self.settings.kto_least
        )
        trains, size = self.settings.mode == "train", self._gate_size(rows)
        alpha = gate_alpha(run_table.next_look(self.db))
        return NewData(
            examples=rows.new if disliked else rows.new - rows.new_disliked,
            users=feedback_counts.new_users(self.db, with_disliked=disliked),
            oldest_ms=feedback_counts.oldest_new_ms(self.db, with_disliked=disliked),
            usable=sum(n for label, n in rows.all.items() if disliked or label != 0),
            gate_items=rows.gate_items,
            gate_users=size.users,
            gate_users_needed=min_clusters(alpha) if self.settings.require_gate_items and trains else 0,
            gate_power=describe(size, alpha) if trains and rows.gate_items else "",
            trained=(
                run_table.newest_export_size(self.db)
                if self.settings.mode == "export"
                else run_table.newest_dataset_size(self.db)
            ),
        )

    def _gate_size(self, rows: UsableRows) -> GateSize:
        """Return how much feedback the next gate can have. How many questions it has is known after the snapshot."""
        improvable = rows.gate_corrections + sum(min(n, MAX_PAIRS) for n in rows.gate_pairs.values())
        items = improvable + rows.gate_likes
        return GateSize(feedback_counts.heldout_users(self.db), items, items, improvable)


def count_new_data(db: sqlite3.Connection, settings: TrainerSettings) -> NewData:
    """Count the new examples that would train, and their users, in transactions of its own."""
    counter = NewDataCounter(db, settings)
    while counter.count_portion():
        pass
    return counter.read()
