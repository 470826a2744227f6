"""Preference pairs of held-out users: a better and a worse answer. `shared.feedback_kinds` names the kinds used.

A preference is a pair already. Thumbs and ratings become pairs by matching one liked with one disliked answer: to the
same question if possible, else of the same user, else in a fixed order. Each answer is in at most one pair.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.trainer.core.chat import Messages
from services.trainer.dataset.filters import GroupedRow, Row
from services.trainer.dataset.holdout import hash_fraction
from services.trainer.dataset.similarity import near_duplicates, near_duplicates_in
from services.trainer.dataset.words import normalised
from services.trainer.gate.limits import MAX_PAIRS
from services.trainer.gate.question_groups import question_groups
from shared.feedback_kinds import KIND_BY_NAME, PAIR_MATCHERS, Matcher

Answered = tuple[str, str]
"""(question, answer)"""
TrainedAnswer = Answered
"""One that a version was trained on."""


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A better and a worse answer, each with its conversation."""

    kind: str
    """Name of the matcher (`shared.feedback_kinds.PAIR_MATCHERS`)."""
    identity: str
    better: tuple[Messages, str]
    worse: tuple[Messages, str]
    user: str
    """User of the better answer."""
    group: str
    """Question group of the better answer (`question_groups.py`)."""


def build_preference_pairs(
    line: str, held_out: Sequence[GroupedRow], trained: Sequence[TrainedAnswer], max_pairs: int = MAX_PAIRS
) -> list[PreferencePair]:
    """Return the pairs of held-out rows, in an order that is fixed for the line.

    Leaves out answers that either version may know by heart: near-duplicates of a trained answer to a near-duplicate
    of its question.

    Args:
        line: Name of the line; it keys the order.
        held_out: Rows of held-out users, of every kind of feedback.
        trained: Questions and answers that either version was trained on.
        max_pairs: Limit for each kind.
    """
    groups = question_groups(held_out)
    ordered = sorted(
        (grouped.row for grouped in held_out),
        key=lambda row: (hash_fraction(line, row.identity), row.identity),
    )
    rows_of = {
        matcher: [row for row in ordered if KIND_BY_NAME[row.kind].matcher == matcher]
        for matcher in PAIR_MATCHERS
    }
    memorised = _memorised(
        trained, [one for matcher, rows in rows_of.items() for row in rows for one in _answers(matcher, row)]
    )
    pairs: list[PreferencePair] = []
    for matcher, judged in rows_of.items():
        rows = [row for row in judged if memorised.isdisjoint(_answers(matcher, row))]
        found = (
            [_given_pair(matcher.name, row, groups) for row in rows]
            if matcher.how == "pair"
            else _match(matcher.name, rows, groups)
        )
        pairs += found[:max_pairs]
    return pairs


def _answers(matcher: Matcher, row: Row) -> list[Answered]:
    """Return the answers of a row that its pair compares, each with the words of the question."""
    texts = (row.answer, row.original) if matcher.how == "pair" else (row.answer,)
    return [(normalised(row.question), text) for text in texts]


def _given_pair(kind: str, row: Row, groups: Mapping[str, str]) -> PreferencePair:
    return PreferencePair(
        kind,
        row.identity,
        (row.messages, row.answer),
        (row.messages, row.original),
        row.user_id,
        groups[row.identity],
    )


def _match(kind: str, judged: Sequence[Row], groups: Mapping[str, str]) -> list[PreferencePair]:
    liked, disliked = ([row for row in judged if row.label is label] for label in (True, False))
    pairs: list[PreferencePair] = []
    criteria: tuple[Callable[[Row], str], ...] = (
        lambda row: normalised(row.question),
        lambda row: row.user_id,
        lambda _: "",
    )
    for criterion in criteria:
        available: dict[str, deque[Row]] = defaultdict(deque)
        for row in disliked:
            available[criterion(row)].append(row)
        matched: set[str] = set()
        for better in liked:
            if available[criterion(better)]:
                worse = available[criterion(better)].popleft()
                matched |= {better.identity, worse.identity}
                pairs.append(
                    PreferencePair(
                        kind,
                        f"{better.identity} {worse.identity}",
                        (better.messages, better.answer),
                        (worse.messages, worse.answer),
                        better.user_id,
                        groups[better.identity],
                    )
                )
        liked = [row for row in liked if row.identity not in matched]
        disliked = [row for row in disliked if row.identity not in matched]
    return pairs


def _memorised(trained: Iterable[TrainedAnswer], given: Iterable[Answered]) -> set[Answered]:
    """Return the given answers of which a near-duplicate was trained, for a near-duplicate of the question.

    All answers to a question are compared in one search, so the cost grows with their number and not with its square.
    The given questions are normalised.
    """
    answers: dict[str, set[str]] = defaultdict(set)
    for question, answer in trained:
        answers[normalised(question)].add(answer)
    given_to: dict[str, set[str]] = defaultdict(set)
    for question, answer in given:
        given_to[question].add(answer)
    known, questions = sorted(answers), sorted(given_to)
    same_neighbours: dict[tuple[int, ...], list[Answered]] = defaultdict(list)
    for question, similar in zip(questions, near_duplicates_in(questions, known), strict=True):
        same_neighbours[tuple(similar)] += [(question, answer) for answer in sorted(given_to[question])]
    found: set[Answered] = set()
    for neighbours, candidates in same_neighbours.items():
        learned = {answer for position in neighbours for answer in answers[known[position]]}
        near = near_duplicates([answer for _, answer in candidates], learned)
        found.update(one for one, is_near in zip(candidates, near, strict=True) if is_near)
    return found
