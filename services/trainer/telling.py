"""What the console shows of what is collected: the threshold bar, and what is held back."""

from __future__ import annotations

import sqlite3
from typing import Any

from services.trainer import collect, runs
from services.trainer.objectives import CommentMode
from services.trainer.settings import Thresholds
from services.trainer.trigger import Waiting
from services.trainer.verify import reasons, usable


def board(
    db: sqlite3.Connection, waiting: Waiting, thresholds: Thresholds, comments: CommentMode, reason: str
) -> dict[str, Any]:
    """`reason`: why a run begins, or does not."""
    examples = collect.dataset(db, collect.through(db))
    return {
        "usable": waiting.examples,
        "needed": thresholds.examples,
        "users": waiting.users,
        "users_needed": thresholds.users,
        "examples": len(examples),
        # What agreement and shares hold back is known since the newest run; the checks are made on all there is.
        "held": runs.quarantined(db) | reasons(usable(examples, comments)[1]),
        "batches": collect.batch_count(db),
        "reason": reason,
    }
