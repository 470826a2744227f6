"""What the gate asks: the corrections of held-out users, one item per (user, question), and what each may count for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from services.trainer.dataset.filters import GroupedRow, Row
from services.trainer.dataset.similarity import frequent_question_stems, near_duplicates, normalised
from services.trainer.dataset.snapshot import asks_for_trained_fact
from services.trainer.gate.scorers import keys_of

Counts = Literal["wins", "seen", "unseen"]
"""`wins`: trained fact, new wording. `seen`: the wording was trained, for information. `unseen`: the fact was not
trained, may only not get worse."""


@dataclass(frozen=True, slots=True)
class Item:
    """`keys`: what a right answer holds (`scorers.keys_of`)."""

    row: Row
    keys: tuple[str, ...]
    counts: Counts


def items_of(
    measure: Sequence[GroupedRow], trained: Sequence[str], trained_by_stable: Sequence[str]
) -> list[Item]:
    """Of the corrections in `measure`. `trained`, `trained_by_stable`: the questions in either version's snapshot. In
    order of identity."""
    newest: dict[tuple[str, str], GroupedRow] = {}
    corrections = [one for one in measure if one.row.kind == "correction"]
    for one in sorted(corrections, key=lambda one: (one.row.occurred_ms, one.row.identity)):
        newest[one.row.user_id, normalised(one.row.question)] = one
    kept = sorted(newest.values(), key=lambda one: one.row.identity)
    known = asks_for_trained_fact(kept, trained)
    seen = near_duplicates([one.row.question for one in kept], [*trained, *trained_by_stable])
    asked = frequent_question_stems([*(one.row.question for one in kept), *trained])
    fellows: dict[int, list[str]] = defaultdict(list)
    for one in kept:
        fellows[one.group].append(one.row.answer)
    return [
        Item(
            one.row,
            keys_of(one.row.answer, one.row.question, _others(fellows[one.group], one.row.answer), asked),
            "unseen" if not fact else "seen" if wording else "wins",
        )
        for one, fact, wording in zip(kept, known, seen, strict=True)
    ]


def _others(answers: Sequence[str], own: str) -> list[str]:
    """The other distinct answers of a group: the same words again say nothing about what is essential."""
    return sorted({answer for answer in answers if normalised(answer) != normalised(own)})
