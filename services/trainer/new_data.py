"""What has come since the last run, or the last dataset where nothing trains."""

from __future__ import annotations

import sqlite3

from services.trainer.core.trigger import NewData
from services.trainer.dataset import batch_table
from services.trainer.dataset.filters import split_by_holdout, usable_rows
from services.trainer.dataset.objectives import enough_for_kto
from services.trainer.run import run_table
from services.trainer.settings import TrainerSettings


def count_new_data(db: sqlite3.Connection, settings: TrainerSettings) -> NewData:
    trains = settings.mode == "train"
    done = run_table.newest_through(db) if trains else run_table.newest_export(db)[0]
    released = run_table.newest_release(db) if trains else None
    everything = batch_table.current_examples(db, batch_table.through(db))
    examples = [e for e in everything if e.is_new(done, released)]
    training, _ = split_by_holdout(settings.line, usable_rows(examples, settings.comment_mode)[0])
    if trains and any(row.label is False for row in training):
        # Whether dislikes train is decided by all judgements, new or not.
        judged, _ = split_by_holdout(settings.line, usable_rows(everything, settings.comment_mode)[0])
        labels = [row.label for row in judged if row.objective == "kto"]
        if not enough_for_kto(labels.count(True), labels.count(False), settings.kto_least):
            training = [row for row in training if row.label is not False]
    answering = {row.response_id for row in training}
    return NewData(
        examples=len(training),
        users=len({row.user_id for row in training}),
        oldest_ms=min((e.cut_ms for e in examples if e.revision.response_id in answering), default=None),
    )
