"""Which rows train if a snapshot has more tokens than a run should train on.

Half of the budget goes to the newest rows, so that a run learns what users said last. The other half is a reservoir: in
each question group the remaining rows are in an order fixed by a keyed hash, and the groups take turns, so that a
question asked by few users is not displaced by one that everybody asks. Pure and deterministic (I5).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Final

from services.trainer.dataset.filters import GroupedRow, QuarantinedRow, Row
from services.trainer.dataset.holdout import hash_fraction
from services.trainer.dataset.words import normalised

NEWEST_SHARE: Final = 0.5
CHECK: Final = "budget"
BEYOND_BUDGET: Final = f"{CHECK}: newer rows and other questions fill the tokens of a run (TOKEN_BUDGET)"


def within_budget(
    line: str, rows: Sequence[GroupedRow], budget: int, size: Callable[[Row], int]
) -> tuple[list[GroupedRow], list[QuarantinedRow]]:
    """Return the rows within the budget, in their order, and the others.

    Args:
        line: Name of the line, which keys the hash.
        rows: Rows that may train.
        budget: Most tokens of all rows, each once. 0: no limit.
        size: Tokens of a row.

    """
    sizes = {one.row.identity: size(one.row) for one in rows} if budget else {}
    if sum(sizes.values()) <= budget or not budget:
        return list(rows), []
    newest = sorted(rows, key=lambda one: (-one.row.occurred_ms, one.row.identity))
    chosen: set[str] = set()
    left = round(NEWEST_SHARE * budget)
    for one in newest:
        if sizes[one.row.identity] > left:
            break
        chosen.add(one.row.identity)
        left -= sizes[one.row.identity]
    left = budget - sum(sizes[identity] for identity in chosen)
    for one in _in_turns(line, [one for one in rows if one.row.identity not in chosen]):
        if sizes[one.row.identity] <= left:
            chosen.add(one.row.identity)
            left -= sizes[one.row.identity]
    kept = [one for one in rows if one.row.identity in chosen]
    beyond = [QuarantinedRow.of(one.row, BEYOND_BUDGET) for one in rows if one.row.identity not in chosen]
    return kept, beyond


def _in_turns(line: str, rows: Sequence[GroupedRow]) -> list[GroupedRow]:
    """Return the first row of each group, then the second of each, and so on."""
    by_group: dict[Hashable, list[tuple[float, str, GroupedRow]]] = defaultdict(list)
    for one in rows:
        # Judged rows make no claim, so each has a group of its own: their wordings take turns instead.
        group = one.group if one.row.objective == "sft" else normalised(one.row.question)
        by_group[group].append((hash_fraction(line, one.row.identity), one.row.identity, one))
    ranked = [
        (rank, place, identity, one)
        for members in by_group.values()
        for rank, (place, identity, one) in enumerate(sorted(members, key=lambda member: member[:2]))
    ]
    return [one for *_, one in sorted(ranked, key=lambda member: member[:3])]
