"""What has come since the last run, or the last dataset where nothing trains."""

from __future__ import annotations

import sqlite3

from services.trainer import collect, runs
from services.trainer.settings import TrainerSettings
from services.trainer.trigger import Waiting
from services.trainer.verify import split, usable


def count(db: sqlite3.Connection, settings: TrainerSettings) -> Waiting:
    trains = settings.mode == "train"
    done = runs.last_through(db) if trains else runs.last_export(db)[0]
    released = runs.last_released(db) if trains else None
    examples = [e for e in collect.dataset(db, collect.through(db)) if e.is_new(done, released)]
    training, _ = split(settings.line, usable(examples, settings.comment_mode)[0])
    answering = {row.response_id for row in training}
    return Waiting(
        examples=len(training),
        users=len({row.user_id for row in training}),
        oldest_ms=min((e.cut_ms for e in examples if e.revision.response_id in answering), default=None),
    )
