"""What held-out users said, as the items of a run's gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.trainer.dataset import snapshot_files
from services.trainer.dataset.filters import GroupedRow
from services.trainer.gate.eval_items import EvalItem, EvalItems, LikedItem, build_eval_items
from services.trainer.gate.preference_pairs import PreferencePair, TrainedAnswer, build_preference_pairs
from services.trainer.run.context import RunContext


@dataclass(frozen=True, slots=True)
class HeldOutItems:
    """The held-out rows of a gate, and its items: corrections and liked answers, and pairs of judged answers."""

    rows: Sequence[GroupedRow]
    answers: EvalItems
    pairs: Sequence[PreferencePair]

    def voting_rows(self) -> list[tuple[str, ...]]:
        """Return the identities of the rows behind each item that votes: one for an answer, up to two for a pair."""
        items: tuple[EvalItem | LikedItem, ...] = (*self.answers.corrections, *self.answers.liked)
        single = [(item.row.identity,) for item in items if item.category == "wins"]
        return single + [tuple(pair.identity.split(" ")) for pair in self.pairs]


def held_out_items(context: RunContext) -> HeldOutItems:
    """Return the items that the held-out rows in the run's folder give, beside what it and stable trained."""
    line, folder, stable_run = context.config.line, context.folder, context.config.stable_run
    held_out = snapshot_files.read_rows(folder, snapshot_files.HELDOUT_ROWS)
    trained = trained_answers(folder)
    by_stable = trained_answers(context.folder_of(stable_run)) if stable_run else []
    return HeldOutItems(
        held_out,
        build_eval_items(
            line, held_out, [question for question, _ in trained], [question for question, _ in by_stable]
        ),
        build_preference_pairs(line, held_out, [*trained, *by_stable]),
    )


def trained_answers(folder: Path) -> list[TrainedAnswer]:
    """Return the questions and answers of a run's snapshot; an empty list if it was erased."""
    rows = [grouped.row for grouped in snapshot_files.trained_rows(folder)]
    return [(row.question, row.answer) for row in rows] + [
        (row.question, row.original) for row in rows if row.objective == "dpo"
    ]
