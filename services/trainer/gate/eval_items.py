"""Evaluation items from corrections of held-out users: one per (user, question)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from services.trainer.dataset.filters import GroupedRow, Row
from services.trainer.dataset.similarity import near_duplicates
from services.trainer.dataset.snapshot import asks_for_trained_fact
from services.trainer.dataset.words import frequent_question_stems, normalised
from services.trainer.gate.question_groups import question_groups
from services.trainer.gate.scorers import required_keys
from shared.feedback_kinds import ITEM, KIND_BY_NAME

Category = Literal["wins", "seen", "unseen"]
"""What an item can show.

- `wins`: the fact was trained, in another wording. The item counts in the win rate.
- `seen`: this wording was trained. For information only.
- `unseen`: the fact was not trained. The candidate must not get worse on these.
"""


@dataclass(frozen=True, slots=True)
class EvalItem:
    """A held-out correction with the word stems that a right answer must contain (`scorers.required_keys`)."""

    row: Row
    keys: tuple[str, ...]
    category: Category
    group: str
    """Question group of the item (`question_groups.py`)."""


def build_eval_items(
    held_out: Sequence[GroupedRow], trained: Sequence[str], trained_by_stable: Sequence[str]
) -> list[EvalItem]:
    """Return the items of the corrections in `held_out`, ordered by identity.

    If a user corrected the same question twice, the newest correction counts.

    Args:
        held_out: Rows of held-out users, of every kind of feedback.
        trained: Questions in the candidate's snapshot.
        trained_by_stable: Questions in the stable version's snapshot.
    """
    newest: dict[tuple[str, str], GroupedRow] = {}
    corrections = [grouped for grouped in held_out if KIND_BY_NAME[grouped.row.kind].matcher == ITEM]
    for grouped in sorted(corrections, key=lambda grouped: (grouped.row.occurred_ms, grouped.row.identity)):
        newest[grouped.row.user_id, normalised(grouped.row.question)] = grouped
    groups = question_groups(held_out)
    kept = sorted(newest.values(), key=lambda grouped: grouped.row.identity)
    questions = [grouped.row.question for grouped in kept]
    fact_trained = asks_for_trained_fact(kept, trained)
    wording_trained = near_duplicates(questions, [*trained, *trained_by_stable])
    common_words = frequent_question_stems([*questions, *trained])
    answers_in_group: dict[int, list[str]] = defaultdict(list)
    for grouped in kept:
        answers_in_group[grouped.group].append(grouped.row.answer)
    items = []
    for grouped, has_fact, has_wording in zip(kept, fact_trained, wording_trained, strict=True):
        row = grouped.row
        others = _other_answers(answers_in_group[grouped.group], row.answer)
        keys = required_keys(row.answer, row.question, others, common_words, row.original)
        category: Category = "unseen" if not has_fact else "seen" if has_wording else "wins"
        items.append(EvalItem(row, keys, category, groups[row.identity]))
    return items


def _other_answers(answers: Sequence[str], own: str) -> list[str]:
    """Return the distinct answers that differ from `own`: repeated words do not show which ones matter."""
    return sorted({answer for answer in answers if normalised(answer) != normalised(own)})
