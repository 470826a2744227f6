"""Which rows train, compared with each other: repetitions, held-out users, agreement of users, a share per user.

Pure and deterministic: the same examples give the same rows and the same reasons (I5).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from services.trainer.core.recipe import CommentMode
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.filters import GroupedRow, QuarantinedRow, Row, first_fault_by_objective
from services.trainer.dataset.holdout import hash_fraction, is_held_out
from services.trainer.dataset.signal_rows import rows_of
from services.trainer.dataset.votes import ChangeRule
from services.trainer.dataset.words import normalised
from shared.feedback_kinds import FEEDBACK_KINDS, Objective

if TYPE_CHECKING:
    from services.trainer.dataset.agreement import Agreement

MIN_SHARE: Final = 0.02
SHARE_FACTOR: Final = 3
"""The maximum share of one user in a dataset is max(`MIN_SHARE`, `SHARE_FACTOR` / number of users)."""


def usable_rows(
    examples: Iterable[Example], comments: CommentMode = "hold", *, max_tokens: int | None = None
) -> tuple[list[Row], list[QuarantinedRow]]:
    """Return the rows that pass all checks, and the others. What one user gives twice counts once, the newest."""
    rows: dict[tuple[object, ...], Row] = {}
    quarantined: list[QuarantinedRow] = []
    for example in examples:
        found, never_train = rows_of(example, comments)
        quarantined += never_train
        for row in found:
            reason = first_fault_by_objective(row, max_tokens=max_tokens)
            if reason is not None:
                quarantined.append(QuarantinedRow.of(row, reason))
                continue
            key = content_key(row)
            newest = row
            if key in rows:
                older, newest = sorted((rows[key], row), key=lambda r: (r.occurred_ms, r.identity))
                quarantined.append(QuarantinedRow.of(older, repeat_reason(row.objective)))
            rows[key] = newest
    return sorted(rows.values(), key=lambda row: row.identity), quarantined


def repeat_reason(objective: Objective) -> str:
    """Return why a row does not train if its user gave newer feedback with the same `content_key`."""
    again = "the same again" if objective == "sft" else "newer feedback on the same"
    return f"duplicate: this user gave {again}"


def content_key(row: Row) -> tuple[object, ...]:
    """Return what two rows of a user share if they repeat: question and answer, or the judged answers."""
    if row.objective == "sft":
        return row.user_id, row.kind, normalised(row.question), normalised(row.answer)
    return row.user_id, row.response_id, frozenset((row.answer, row.original))


def split_by_holdout(line: str, rows: Iterable[Row]) -> tuple[list[Row], list[Row]]:
    """Return the rows that may train, and those of held-out users.

    Imported rows always train: an import has one user id for many people who are not users of the line, and the hash of
    that id must not decide about all of it.
    """
    training: list[Row] = []
    heldout: list[Row] = []
    for row in rows:
        is_heldout = is_held_out(line, row.user_id) and not row.imported
        (heldout if is_heldout else training).append(row)
    return training, heldout


def apply_agreement(
    rows: Sequence[Row], comments: CommentMode = "hold", rule: ChangeRule | None = None
) -> tuple[list[GroupedRow], list[QuarantinedRow]]:
    """Return the rows whose claim leads (`agreement.py`), and the others.

    Corrections and rewritten comments make claims. An appended comment adds to an answer of the model, and a judgement
    is about one, so they contradict no claim: each passes, with a group of its own. But an answer that a user liked
    does not pass if more users agree on another one.
    """
    claiming = {
        kind.name for kind in FEEDBACK_KINDS if kind.is_answer or (kind.is_remark and comments == "revise")
    }
    kept, quarantined = _leading([row for row in rows if row.kind in claiming], rule)
    first = max((one.group for one in kept), default=-1) + 1
    others = [row for row in rows if row.kind not in claiming]
    outvoted = _outvoted_likes([one.row for one in kept], [row for row in others if row.label], rule)
    quarantined += [QuarantinedRow.of(row, f"agreement: {verdict}") for row, verdict in outvoted]
    without = {row.identity for row, _ in outvoted}
    passing = [row for row in others if row.identity not in without]
    kept += [GroupedRow(row, group) for group, row in enumerate(passing, first)]
    return sorted(kept, key=lambda one: one.row.identity), quarantined


def _leading(rows: Sequence[Row], rule: ChangeRule | None) -> tuple[list[GroupedRow], list[QuarantinedRow]]:
    agreement = _agreement(rows, rule)
    kept, quarantined = [], []
    for row, group, verdict in zip(rows, agreement.group, agreement.verdict, strict=True):
        if verdict is None or "agreement" in row.released:
            kept.append(GroupedRow(row, group))
        else:
            quarantined.append(QuarantinedRow.of(row, f"agreement: {verdict}"))
    return kept, quarantined


def _outvoted_likes(
    leading: Sequence[Row], liked: Sequence[Row], rule: ChangeRule | None
) -> list[tuple[Row, str]]:
    """Return the liked answers that the leading claims outvote, with the verdict.

    A like is a vote for the answer. It decides nothing about corrections, because a liked answer is often long and says
    many things.
    """
    if not leading or not liked:
        return []
    agreement = _agreement([*leading, *liked], rule)
    corrected = set(agreement.claim[: len(leading)])
    of_likes = slice(len(leading), None)
    found = zip(liked, agreement.verdict[of_likes], agreement.opponent[of_likes], strict=True)
    return [
        (row, verdict)
        for row, verdict, opponent in found
        if verdict in ("outvoted", "outdated") and opponent in corrected and "agreement" not in row.released
    ]


def _agreement(rows: Sequence[Row], rule: ChangeRule | None) -> Agreement:
    from services.trainer.dataset.agreement import (  # noqa: PLC0415 - imports SciPy; the service checks single rows
        corrections_of,
        find_agreement,
    )

    said = corrections_of(
        [(row.user_id, row.question, row.answer) for row in rows], [row.occurred_ms for row in rows]
    )
    return find_agreement(said, rule)


def limit_per_user(rows: Sequence[GroupedRow], line: str) -> tuple[list[GroupedRow], list[QuarantinedRow]]:
    """Trim each user to the maximum share of the rows that are left.

    A keyed hash of its identity decides whether a row stays, so order and time of arrival do not matter.
    """
    per_user: dict[str, list[GroupedRow]] = defaultdict(list)
    for one in sorted(rows, key=lambda one: hash_fraction(line, one.row.identity)):
        per_user[one.row.user_id].append(one)
    cap = cap_per_user({user: len(theirs) for user, theirs in per_user.items()})
    kept = [one for theirs in per_user.values() for one in theirs[:cap]]
    over = [one.row for theirs in per_user.values() for one in theirs[cap:]]
    quarantined = [QuarantinedRow.of(row, "share: this user has many rows already") for row in over]
    return sorted(kept, key=lambda one: one.row.identity), quarantined


def cap_per_user(counts: Mapping[str, int]) -> int:
    """Return the most rows that one user may have: the maximum share of the rows then left, and at least 1."""
    if not counts:
        return 0
    share = max(MIN_SHARE, SHARE_FACTOR / len(counts))
    cap = max(counts.values())
    while cap > 1 and cap > share * sum(min(cap, n) for n in counts.values()):
        cap -= 1
    return cap
