"""Part 1 of agreement: groups of questions that ask the same.

Two corrections are linked if their questions are similar (`SAME_QUESTION`), if their answers are similar
(`SAME_ANSWER`) and their questions have something in common, or if their answers are nearly equal (`EQUAL_ANSWER`).
Answers are compared by TF-IDF without the words of their own question. Links through answers join "Who founded it?"
with "Whose idea was it?", so users who ask in other words can outvote a false answer. Groups are the connected
components of the links.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from services.trainer.dataset.corrections import Correction
from services.trainer.dataset.similar_pairs import ROUNDING, Integers, Limits, Matrix
from services.trainer.dataset.similarity import Vectors, stem_vectors
from services.trainer.dataset.words import content_stems

SAME_QUESTION: Final = 0.7
SAME_ANSWER: Final = 0.5
SOMETHING_IN_COMMON: Final = 0.05
EQUAL_ANSWER: Final = 0.9
MAX_CROSS_PAIRS: Final = 4096
"""Most pairs of questions that are compared because of one answer; beyond, only pairs with a common term are."""
_PAIRS_AT_ONCE: Final = 1_000_000
Pairs: TypeAlias = tuple[Integers, Integers]
_NO_PAIRS: Final[Integers] = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class SimilarAnswers:
    """Which answers are similar. It does not depend on how similar their questions are."""

    equal: Pairs
    """Pairs of questions whose answers are nearly equal."""
    similar: Matrix
    """(answers, answers) similarities of the own stems of answers from `SAME_ANSWER` on."""
    has_stems: Integers
    """(answers,) number of own stems."""
    asked: dict[int, dict[int, None]]
    """Answer -> its questions."""


def similar_answers(
    corrections: Sequence[Correction], questions: Vectors, limits: Limits | None = None
) -> SimilarAnswers:
    """Compare the answers. `limits` are those of each of the two searches."""
    answers = stem_vectors([tuple(sorted(one.own_stems)) for one in corrections])
    asked: dict[int, dict[int, None]] = defaultdict(dict)
    for answer, question in zip(answers.of.tolist(), questions.of.tolist(), strict=True):
        asked[answer][question] = None
    return SimilarAnswers(
        _links_by_equal_answers(corrections, questions, limits),
        answers.similar(SAME_ANSWER, limits),
        np.diff(answers.matrix.indptr).astype(np.int64),
        asked,
    )


def question_groups(questions: Vectors, similarity: Matrix, answers: SimilarAnswers) -> list[int]:
    """Return the group of each correction, numbered by first appearance.

    Args:
        questions: Vectors of the questions of all corrections; equal wordings share one.
        similarity: Similarities of these vectors.
        answers: Which answers to them are similar.

    """
    size = questions.matrix.shape[0]
    same_question = similarity.tocoo()
    is_same = same_question.data >= SAME_QUESTION - ROUNDING
    links = [
        (same_question.row[is_same], same_question.col[is_same]),
        answers.equal,
    ]
    links.append(_links_by_similar_answers(questions, answers, components(size, links)))
    return renumbered(components(size, links)[questions.of])


def _links_by_equal_answers(
    corrections: Sequence[Correction], questions: Vectors, limits: Limits | None
) -> Pairs:
    """Return pairs of questions whose answers are nearly equal.

    Answers without two stems of their own, such as "Yes.", equal each other whatever was asked, so they link nothing.
    """
    specific = [i for i, one in enumerate(corrections) if len(one.own_stems) >= 2]
    answers = stem_vectors([content_stems(one.answer) for one in corrections])
    question_of: dict[int, int] = {}
    links = []
    for answer, question in zip(answers.of[specific].tolist(), questions.of[specific].tolist(), strict=True):
        links.append((question_of.setdefault(answer, question), question))
    equal = answers.similar(EQUAL_ANSWER, limits).tocoo()
    links += [
        (question_of[one], question_of[other])
        for one, other in zip(equal.row.tolist(), equal.col.tolist(), strict=True)
        if one in question_of and other in question_of
    ]
    return as_pairs(links)


def _links_by_similar_answers(questions: Vectors, answers: SimilarAnswers, component: Integers) -> Pairs:
    """Return pairs of questions that have something in common, and answers that are similar.

    Only pairs that join two components are of interest. `component` has that of each question so far.
    """
    similar, asked = answers.similar, answers.asked
    found: list[Pairs] = []
    waiting: list[Pairs] = []
    count = 0
    for answer, own in asked.items():
        neighbours = similar.indices[similar.indptr[answer] : similar.indptr[answer + 1]].tolist()
        one = np.fromiter(own, dtype=np.int64)
        other = np.unique([question for near in (answer, *neighbours) for question in asked[near]])
        if not answers.has_stems[answer] or (component[other] == component[one[0]]).all():
            continue
        pairs = _pairs_to_compare(questions.matrix, one, other)
        joins = component[pairs[0]] != component[pairs[1]]
        waiting.append((pairs[0][joins], pairs[1][joins]))
        count += int(joins.sum())
        if count >= _PAIRS_AT_ONCE:
            found.append(_with_something_in_common(questions, waiting))
            waiting, count = [], 0
    found.append(_with_something_in_common(questions, waiting))
    return np.concatenate([rows for rows, _ in found]), np.concatenate([columns for _, columns in found])


def _with_something_in_common(questions: Vectors, pairs: Sequence[Pairs]) -> Pairs:
    size = questions.matrix.shape[0]
    keys = np.unique(np.concatenate([_NO_PAIRS, *(one * size + other for one, other in pairs)]))
    row, column = np.divmod(keys, size)
    linked = questions.similarity(row, column) >= SOMETHING_IN_COMMON - ROUNDING
    return row[linked], column[linked]


def _pairs_to_compare(vectors: Matrix, one: Integers, other: Integers) -> Pairs:
    """Return all pairs of two sets of questions; if they are too many, pairs that link questions with a common term.

    For each term, all questions with it are then paired with the one of the other set in which it weighs most.
    """
    if len(one) * len(other) <= MAX_CROSS_PAIRS:
        return np.repeat(one, len(other)), np.tile(other, len(one))
    found = []
    for part, rest in ((one, other), (other, one)):
        terms = vectors[part].tocoo()
        order = np.lexsort((part[terms.row], -terms.data, terms.col))
        term, first = np.unique(terms.col[order], return_index=True)
        heaviest = np.full(vectors.shape[1], -1)
        heaviest[term] = part[terms.row[order[first]]]
        having = vectors[rest].tocoo()
        known = heaviest[having.col] >= 0
        found.append((heaviest[having.col[known]], rest[having.row[known]]))
    (a, b), (c, d) = found
    return np.concatenate((a, c)), np.concatenate((b, d))


def as_pairs(links: Sequence[tuple[int, int]]) -> Pairs:
    """Return links as two arrays."""
    array = np.asarray(links, dtype=np.int64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def components(size: int, links: Sequence[Pairs]) -> Integers:
    """Return the number of the connected component of each node."""
    rows, columns = (np.concatenate(part) for part in zip(*links, strict=True))
    graph = coo_matrix((np.ones(len(rows), dtype=np.bool_), (rows, columns)), shape=(size, size))
    labels: Integers = connected_components(graph.tocsr(), directed=False)[1].astype(np.int64)
    return labels


def renumbered(labels: Integers) -> list[int]:
    """Return the labels numbered by first appearance."""
    numbering: dict[int, int] = {}
    return [numbering.setdefault(label, len(numbering)) for label in labels.tolist()]
