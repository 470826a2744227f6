"""Counts the usable data that is new since the last run, or since the last dataset if the trainer only exports."""

from __future__ import annotations

import sqlite3

from services.trainer.core.trigger import NewData
from services.trainer.dataset import batch_table
from services.trainer.dataset.filters import split_by_holdout, usable_rows
from services.trainer.dataset.objectives import enough_for_kto
from services.trainer.run import run_table
from services.trainer.settings import TrainerSettings


def count_new_data(db: sqlite3.Connection, settings: TrainerSettings) -> NewData:
    """Count the new examples that would train, and their users."""
    trains = settings.mode == "train"
    through = run_table.newest_through(db) if trains else run_table.newest_export(db)[0]
    released = run_table.newest_release(db) if trains else None
    examples = batch_table.current_examples(db, batch_table.through(db))
    new = [example for example in examples if example.is_new(through, released)]
    training, _ = split_by_holdout(settings.line, usable_rows(new, settings.comment_mode)[0])
    if trains and any(row.label is False for row in training):
        # Whether disliked answers train depends on the labels of all rows, not only of the new ones.
        rows, _ = split_by_holdout(settings.line, usable_rows(examples, settings.comment_mode)[0])
        labels = [row.label for row in rows if row.objective == "kto"]
        if not enough_for_kto(labels.count(True), labels.count(False), settings.kto_least):
            training = [row for row in training if row.label is not False]
    responses = {row.response_id for row in training}
    return NewData(
        examples=len(training),
        users=len({row.user_id for row in training}),
        oldest_ms=min(
            (example.cut_ms for example in new if example.revision.response_id in responses), default=None
        ),
    )
