"""Evaluation items from held-out users: their corrections, and the answers that they liked.

Both kinds are items at the share at which users gave them: a version may answer a question better that users corrected,
and worse one whose answer they liked. If a user gave several judgements of one question, the newest counts. A disliked
answer is no item, because what would have been right is not known.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Literal

from services.trainer.dataset.filters import GroupedRow, Row
from services.trainer.dataset.holdout import hash_fraction
from services.trainer.dataset.open_questions import Claim, stand_side_by_side
from services.trainer.dataset.similarity import near_duplicates
from services.trainer.dataset.snapshot import asks_for_trained_fact
from services.trainer.dataset.words import frequent_question_stems, normalised
from services.trainer.gate.question_groups import question_groups
from services.trainer.gate.scorers import Rubric, build_rubric, liked_facts
from shared.feedback_kinds import ITEM, KIND_BY_NAME

CORRECTIONS = "corrections"
LIKED = "liked answers"
MAX_OTHERS = 40
"""Most answers of other users to a question that are compared with one."""
Category = Literal["wins", "seen", "unseen"]
"""What an item can show.

- `wins`: the fact was trained, in another wording. The item counts in the win rate.
- `seen`: this wording was trained. For information only.
- `unseen`: the fact was not trained. The candidate must not get worse on these.
"""


MAX_ITEMS: Mapping[Category, int] = {"wins": 400, "unseen": 200, "seen": 100}
"""Most items of each category, of both kinds together. More would cost more time than they add information."""


@dataclass(frozen=True, slots=True)
class EvalItem:
    """A held-out correction, with how answers to its question are scored."""

    row: Row
    rubric: Rubric
    category: Category
    group: str
    """Question group of the item (`question_groups.py`)."""


@dataclass(frozen=True, slots=True)
class LikedItem:
    """An answer that a held-out user liked."""

    row: Row
    facts: tuple[str, ...]
    """Stems by which to check whether another answer says the same (`scorers.liked_facts`). None: it is a tie."""
    category: Category
    group: str
    """Question group of the item (`question_groups.py`)."""


@dataclass(frozen=True, slots=True)
class EvalItems:
    """The items of a gate, ordered by identity.

    Attributes:
        corrections: Corrections.
        liked: Liked answers.
        given: How many of each kind held-out users gave.
        left_out: How many of these are not evaluated.
    """

    corrections: Sequence[EvalItem] = ()
    liked: Sequence[LikedItem] = ()
    given: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)


def build_eval_items(
    line: str, held_out: Sequence[GroupedRow], trained: Sequence[str], trained_by_stable: Sequence[str]
) -> EvalItems:
    """Return the items of held-out users.

    Args:
        line: Name of the line; it keys which items are evaluated if there are too many.
        held_out: Rows of held-out users, of every kind of feedback.
        trained: Questions in the candidate's snapshot.
        trained_by_stable: Questions in the stable version's snapshot.
    """
    judged = _newest_judgements(held_out)
    groups = question_groups(held_out)
    numbers = {name: number for number, name in enumerate(sorted(set(groups.values())))}
    questions = [row.question for row, _ in judged]
    fact_trained = asks_for_trained_fact(
        [GroupedRow(row, numbers[groups[row.identity]]) for row, _ in judged], trained
    )
    wording_trained = near_duplicates(questions, [*trained, *trained_by_stable])
    common_words = frequent_question_stems([*questions, *trained])
    in_group: dict[int, list[Row]] = defaultdict(list)
    by_category: dict[Category, list[tuple[Row, int]]] = defaultdict(list)
    for (row, group), has_fact, has_wording in zip(judged, fact_trained, wording_trained, strict=True):
        by_category["unseen" if not has_fact else "seen" if has_wording else "wins"].append((row, group))
        if _is_correction(row):
            in_group[group].append(row)
    corrections, liked = [], []
    for category, rows in by_category.items():
        for row, group in _sample(line, rows, MAX_ITEMS[category]):
            if _is_correction(row):
                rubric = _rubric(row, in_group[group], common_words)
                corrections.append(EvalItem(row, rubric, category, groups[row.identity]))
            else:
                facts = liked_facts(row.answer, row.question, common_words)
                liked.append(LikedItem(row, facts, category, groups[row.identity]))
    given = Counter(CORRECTIONS if _is_correction(row) else LIKED for row, _ in judged)
    return EvalItems(
        sorted(corrections, key=lambda item: item.row.identity),
        sorted(liked, key=lambda item: item.row.identity),
        given,
        {kind: given[kind] - len(items) for kind, items in ((CORRECTIONS, corrections), (LIKED, liked))},
    )


def _is_correction(row: Row) -> bool:
    return KIND_BY_NAME[row.kind].matcher == ITEM


def _newest_judgements(held_out: Sequence[GroupedRow]) -> list[tuple[Row, int]]:
    """Return the newest correction or liked answer of each user to each question, with its group.

    A newer dislike withdraws a like, but not a correction, which is a dislike itself.
    """
    newest: dict[tuple[str, str], tuple[Row, int]] = {}
    for grouped in sorted(held_out, key=lambda grouped: (grouped.row.occurred_ms, grouped.row.identity)):
        row = grouped.row
        asked = row.user_id, normalised(row.question)
        if _is_correction(row) or row.label:
            newest[asked] = row, grouped.group
        elif row.label is False and asked in newest and newest[asked][0].label:
            del newest[asked]
    return sorted(newest.values(), key=lambda one: one[0].identity)


def _sample(line: str, judged: Sequence[tuple[Row, int]], limit: int) -> list[tuple[Row, int]]:
    """Return at most `limit` judgements: one of each user first, then the second of each user, and so on.

    A keyed hash orders those of a user, and the users, so neither kind is preferred, nor what is new.
    """
    taken: Counter[str] = Counter()
    ranked = []
    for row, group in sorted(judged, key=lambda one: (hash_fraction(line, one[0].identity), one[0].identity)):
        ranked.append((taken[row.user_id], (row, group)))
        taken[row.user_id] += 1
    return [one for _, one in sorted(ranked, key=lambda one: one[0])[:limit]]


def _rubric(row: Row, in_group: Sequence[Row], common_words: Set[str]) -> Rubric:
    others, alternatives = _other_answers(row, in_group)
    return build_rubric(
        row.answer,
        row.question,
        original=row.original,
        other_answers=others,
        alternatives=alternatives,
        common_words=common_words,
    )


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
