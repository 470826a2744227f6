"""Evaluation items from corrections of held-out users: one per (user, question)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from services.trainer.dataset.filters import GroupedRow, Row
from services.trainer.dataset.open_questions import Claim, stand_side_by_side
from services.trainer.dataset.similarity import near_duplicates
from services.trainer.dataset.snapshot import asks_for_trained_fact
from services.trainer.dataset.words import frequent_question_stems, normalised
from services.trainer.gate.question_groups import question_groups
from services.trainer.gate.scorers import Rubric, build_rubric
from shared.feedback_kinds import ITEM, KIND_BY_NAME

MAX_OTHERS = 40
"""Most answers of other users to a question that are compared with one."""
Category = Literal["wins", "seen", "unseen"]
"""What an item can show.

- `wins`: the fact was trained, in another wording. The item counts in the win rate.
- `seen`: this wording was trained. For information only.
- `unseen`: the fact was not trained. The candidate must not get worse on these.
"""


@dataclass(frozen=True, slots=True)
class EvalItem:
    """A held-out correction, with how answers to its question are scored."""

    row: Row
    rubric: Rubric
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
    in_group: dict[int, list[Row]] = defaultdict(list)
    for grouped in kept:
        in_group[grouped.group].append(grouped.row)
    items = []
    for grouped, has_fact, has_wording in zip(kept, fact_trained, wording_trained, strict=True):
        row = grouped.row
        others, alternatives = _other_answers(row, in_group[grouped.group])
        rubric = build_rubric(
            row.answer,
            row.question,
            original=row.original,
            other_answers=others,
            alternatives=alternatives,
            common_words=common_words,
        )
        category: Category = "unseen" if not has_fact else "seen" if has_wording else "wins"
        items.append(EvalItem(row, rubric, category, groups[row.identity]))
    return items


def _other_answers(own: Row, in_group: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Return the distinct other answers of a group: those that say the same, and those that are good as well.

    A snapshot keeps two claims about one question only if both may be right (`open_questions.py`). Answers to another
    question of the group say nothing else about this one. Repeated words do not show which ones matter.
    """
    asked_by = len({row.user_id for row in in_group})
    mine = Claim([(own.question, own.answer)], 1)
    distinct = {normalised(row.answer): row for row in in_group}
    del distinct[normalised(own.answer)]
    others = [distinct[answer] for answer in sorted(distinct)][:MAX_OTHERS]
    claims = [Claim([(row.question, row.answer)], 1) for row in others]
    is_same_question = near_duplicates([row.question for row in others], [own.question]) if others else []
    same: list[str] = []
    several: list[str] = []
    for row, claim, asks_the_same in zip(others, claims, is_same_question, strict=True):
        if not stand_side_by_side(mine, claim, asked_by, agreed=False):
            same.append(row.answer)
        elif asks_the_same:
            several.append(row.answer)
    return same, several
