"""What the gate reads in feedback that has no text to copy: pairs of a better and a worse answer of held-out users.

A preference is a pair. Thumbs and ratings become pairs by matching one liked with one disliked answer: to the same
question where there are such, else of the same user, else in a fixed order; each answer is in one pair. A candidate
wins a pair if it finds the better answer more likely, beside the worse, than stable does (`decide.PAIR_MARGIN`). What
makes all answers more or less likely, longer or shorter alike, cancels out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from services.trainer.core.chat import Messages
from services.trainer.dataset.filters import Row
from services.trainer.dataset.holdout import hash_fraction
from services.trainer.dataset.similarity import near_duplicates, near_duplicates_in, normalised

MOST = 200
"""Pairs of a kind: more would cost more time than they add."""
Kind = Literal["preference", "thumbs"]
"""Ratings count as thumbs: 5 and 4 are liked, 2 and 1 disliked."""
Said = tuple[str, str]
"""(question, answer)"""


@dataclass(frozen=True, slots=True)
class Preferred:
    """`better`, `worse`: conversation and answer of each."""

    kind: Kind
    identity: str
    better: tuple[Messages, str]
    worse: tuple[Messages, str]


def pairs_of(line: str, measure: Sequence[Row], trained: Sequence[Said], most: int = MOST) -> list[Preferred]:
    """`trained`: what either version learned from. An answer that is a near-duplicate of a trained one, to a
    near-duplicate of its question, was learned by heart and measures nothing. In an order fixed by the line."""
    fresh = _Fresh(trained)
    ordered = sorted(measure, key=lambda row: (hash_fraction(line, row.identity), row.identity))
    preferences = [
        Preferred("preference", row.identity, (row.messages, row.answer), (row.messages, row.original))
        for row in ordered
        if row.kind == "preference" and fresh(row.question, row.answer) and fresh(row.question, row.original)
    ][:most]
    judged = [row for row in ordered if row.label is not None and fresh(row.question, row.answer)]
    return preferences + _matched(judged)[:most]


def _matched(judged: Sequence[Row]) -> list[Preferred]:
    liked, disliked = ([row for row in judged if row.label is label] for label in (True, False))
    found: list[Preferred] = []
    keys: tuple[Callable[[Row], str], ...] = (
        lambda row: normalised(row.question),
        lambda row: row.user_id,
        lambda _: "",
    )
    for key in keys:
        waiting: dict[str, list[Row]] = defaultdict(list)
        for row in disliked:
            waiting[key(row)].append(row)
        taken: set[str] = set()
        for one in liked:
            if waiting[key(one)]:
                other = waiting[key(one)].pop(0)
                taken |= {one.identity, other.identity}
                found.append(
                    Preferred(
                        "thumbs",
                        f"{one.identity} {other.identity}",
                        (one.messages, one.answer),
                        (other.messages, other.answer),
                    )
                )
        liked = [row for row in liked if row.identity not in taken]
        disliked = [row for row in disliked if row.identity not in taken]
    return found


class _Fresh:
    """Whether an answer to a question is unlike every trained answer to a like question."""

    def __init__(self, trained: Sequence[Said]) -> None:
        self._answers: dict[str, set[str]] = defaultdict(set)
        for question, answer in trained:
            self._answers[normalised(question)].add(answer)
        self._questions = sorted(self._answers)
        self._near: dict[str, set[str]] = {}

    def __call__(self, question: str, answer: str) -> bool:
        asked = normalised(question)
        if asked not in self._near:
            positions = near_duplicates_in([asked], self._questions)[0]
            self._near[asked] = set().union(*(self._answers[self._questions[i]] for i in positions))
        return not near_duplicates([answer], self._near[asked])[0]
