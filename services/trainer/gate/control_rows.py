"""Rows that a control trains: those of the candidate, without what the new feedback says. Pure.

The new rows keep their questions, their objectives and the distribution of their answers. Only which answer belongs to
which question is random. If feedback says nothing about what users want, candidate and control are then equally good,
however the items of the gate were selected (docs/decisions/gate.md).
"""

from __future__ import annotations

import random
from collections.abc import Sequence, Set
from dataclasses import replace
from typing import Final

from services.trainer.dataset.filters import GroupedRow, Row

MAX_EXCHANGES: Final = 50
"""Attempts to give a row the answer to another question."""


def control_rows(rows: Sequence[GroupedRow], trained_by_stable: Set[str], seed: int) -> list[GroupedRow]:
    """Return rows with the new feedback permuted, in the same order.

    Answers of corrections are exchanged among question groups, labels of judgements among all of them, and in half of
    the preferences the rejected answer becomes the preferred one.

    Args:
        rows: Rows of the candidate's snapshot that train.
        trained_by_stable: Identities of the rows that trained the stable version, which stay as they are.
        seed: Seed of the permutation.

    """
    rng = random.Random(seed)  # noqa: S311 - not used for security
    permuted = list(rows)
    new = [i for i, one in enumerate(rows) if one.row.identity not in trained_by_stable]
    answered = [i for i in new if rows[i].row.objective == "sft"]
    for i, source in zip(answered, _exchanged([rows[i].group for i in answered], rng), strict=True):
        donor = rows[answered[source]].row
        permuted[i] = replace(rows[i], row=replace(rows[i].row, answer=donor.answer, unended=donor.unended))
    judged = [i for i in new if rows[i].row.objective == "kto"]
    labels = [rows[i].row.label for i in judged]
    rng.shuffle(labels)
    for i, label in zip(judged, labels, strict=True):
        permuted[i] = replace(rows[i], row=replace(rows[i].row, label=label))
    preferred = [i for i in new if rows[i].row.objective == "dpo"]
    for i in rng.sample(preferred, len(preferred) // 2):
        permuted[i] = replace(rows[i], row=_reversed(rows[i].row))
    return permuted


def _exchanged(groups: Sequence[int], rng: random.Random) -> list[int]:
    """Return a random permutation that gives each place one of another group, as far as there are enough of them."""
    order = list(range(len(groups)))
    rng.shuffle(order)
    for place in range(len(order)):
        for _ in range(MAX_EXCHANGES):
            if groups[order[place]] != groups[place]:
                break
            other = rng.randrange(len(order))
            if groups[order[place]] != groups[other] and groups[order[other]] != groups[place]:
                order[place], order[other] = order[other], order[place]
    return order


def _reversed(row: Row) -> Row:
    """Return a preference for the other answer."""
    return replace(
        row,
        answer=row.original,
        original=row.answer,
        unended=row.original_unended,
        original_unended=row.unended,
    )
