"""Similarity of short texts by their words and their spelling.

Lexical on purpose, without a model: these functions decide whose corrections train, so a decision must be deterministic
and explainable, and must not depend on what the model under training believes. Counts of terms are scikit-learn's;
`words.py` has the rules for words, numbers and negation, and `similar_pairs.py` finds the pairs that are similar.

Texts that do not differ for a similarity share one vector, so equal texts cost nothing and are never missed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from scipy.sparse import csr_matrix, diags, hstack
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.preprocessing import normalize

from services.trainer.dataset.similar_pairs import (
    MAX_PAIRS_PER_ROW,
    ROUNDING,
    Floats,
    Integers,
    Limits,
    Matrix,
    products,
    similar_pairs,
)
from services.trainer.dataset.words import content_stems, normalised, spelling

NEAR_DUPLICATE: Final = 0.6
"""Texts at least this similar count as one wording: training on one of them teaches the other."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """Unit vectors of texts. Texts that do not differ for a similarity share a vector."""

    matrix: Matrix
    """(vectors, terms)"""
    of: Integers
    """(texts,) number of each text's vector."""

    def similarity(self, one: Integers, other: Integers) -> Floats:
        """Return the similarities of vectors `one` and `other`, pair by pair."""
        return products(self.matrix, self.matrix, (one, other))

    def similar(self, threshold: float, limits: Limits | None = None) -> Matrix:
        """Return the symmetric (vectors, vectors) similarities from `threshold` on, without each vector's own."""
        return similar_pairs(self.matrix, None, threshold, limits)


def question_vectors(questions: Sequence[str]) -> Vectors:
    """Return vectors whose products are similarities of questions.

    A similarity is the mean of two TF-IDF cosines, of content stems and of character 4-grams: stems match a reordered
    question, spelling matches an inflected one. Document frequencies are those of all given texts, so a value depends
    on all of them.
    """
    first, of = _distinct([(content_stems(text), spelling(text)) for text in questions])
    texts = [questions[i] for i in first]
    counts = np.bincount(of, minlength=len(texts))
    stems = _tf_idf(CountVectorizer(analyzer=content_stems), texts, counts)
    grams = _tf_idf(CountVectorizer(**_BY_GRAM), texts, counts)
    return Vectors(hstack((stems, grams), format="csr") * np.float32(0.5**0.5), of)


def stem_vectors(documents: Sequence[tuple[str, ...]]) -> Vectors:
    """Return vectors whose products are the TF-IDF cosines of documents that are given as stems."""
    first, of = _distinct(documents)
    counts = np.bincount(of, minlength=len(first))
    return Vectors(_tf_idf(CountVectorizer(analyzer=iter), [documents[i] for i in first], counts), of)


def similar_to_any(
    questions: Sequence[str], others: Sequence[str], threshold: float, limits: Limits | None = None
) -> list[bool]:
    """Return for each question whether its similarity to any of the others is at least `threshold`."""
    vectors = question_vectors([*questions, *others])
    rows, row_of = np.unique(vectors.of[: len(questions)], return_inverse=True)
    columns = np.unique(vectors.of[len(questions) :])
    limits = replace(limits or Limits(), pairs_per_row=1)
    pairs = similar_pairs(vectors.matrix[rows], vectors.matrix[columns], threshold, limits)
    found: list[bool] = (np.diff(pairs.indptr) > 0)[row_of].tolist()
    return found


def near_duplicates(
    candidates: Sequence[str], known: Iterable[str], limits: Limits | None = None
) -> list[bool]:
    """Return for each candidate whether it is a near-duplicate of any known text."""
    texts = [*candidates, *sorted(set(known))]
    same_words = {normalised(text) for text in texts[len(candidates) :]}
    limits = replace(limits or Limits(), pairs_per_row=1)
    similar = _near_duplicate_vectors(texts, len(candidates), limits)
    any_similar = np.diff(similar.pairs.indptr) > 0
    return [
        bool(any_similar[row]) or normalised(text) in same_words
        for row, text in zip(similar.row_of, candidates, strict=True)
    ]


def near_duplicates_in(
    candidates: Sequence[str], known: Sequence[str], limits: Limits | None = None
) -> list[list[int]]:
    """Return for each candidate the positions of its near-duplicates in `known`, in order.

    Texts are near-duplicates if they have the same words, or if the larger of the Jaccard index of their content stems
    and the cosine of their character 4-grams is at least `NEAR_DUPLICATE`. The larger one counts, so that a change of
    order or of inflection alone hides nothing. Unlike the similarity of questions this depends on the two texts only.
    Of more than `MAX_PAIRS_PER_ROW` near-duplicates, that many are returned, the most similar ones.
    """
    same_words: dict[str, list[int]] = defaultdict(list)
    for position, text in enumerate(known):
        same_words[normalised(text)].append(position)
    similar = _near_duplicate_vectors([*candidates, *known], len(candidates), limits or Limits())
    positions_of: dict[int, list[int]] = defaultdict(list)
    for position, column in enumerate(similar.column_of.tolist()):
        positions_of[column].append(position)
    found = []
    for row, text in zip(similar.row_of.tolist(), candidates, strict=True):
        positions = set(same_words[normalised(text)][:MAX_PAIRS_PER_ROW])
        for column in _columns_by_similarity(similar.pairs, row):
            if len(positions) >= MAX_PAIRS_PER_ROW:
                break
            positions.update(positions_of[column][:MAX_PAIRS_PER_ROW])
        found.append(sorted(positions)[:MAX_PAIRS_PER_ROW])
    return found


@dataclass(frozen=True, slots=True)
class _NearDuplicates:
    """Near-duplicates among vectors: (rows, columns), the row of each candidate, the column of each known text."""

    pairs: Matrix
    row_of: Integers
    column_of: Integers


def _near_duplicate_vectors(texts: Sequence[str], candidates: int, limits: Limits) -> _NearDuplicates:
    """Compare the first `candidates` texts with the others."""
    first, of = _distinct([(content_stems(text), spelling(text)) for text in texts])
    rows, row_of = np.unique(of[:candidates], return_inverse=True)
    columns, column_of = np.unique(of[candidates:], return_inverse=True)
    if not len(rows) or not len(columns):
        return _NearDuplicates(csr_matrix((len(rows), len(columns))), row_of, column_of)
    distinct = [texts[i] for i in first]
    stems = _counts(CountVectorizer(analyzer=content_stems, binary=True), distinct)
    grams = normalize(_counts(CountVectorizer(**_BY_GRAM), distinct))
    by_stems = _jaccard(stems[rows], stems[columns], limits)
    by_grams = similar_pairs(grams[rows], grams[columns], NEAR_DUPLICATE, limits)
    return _NearDuplicates(by_stems.maximum(by_grams), row_of, column_of)


def _jaccard(rows: Matrix, columns: Matrix, limits: Limits) -> Matrix:
    """Return the Jaccard indices from `NEAR_DUPLICATE` on, of rows and columns of zeros and ones.

    Sets with a Jaccard index of J have a cosine of at least 2 J / (1 + J).
    """
    least_cosine = 2 * NEAR_DUPLICATE / (1 + NEAR_DUPLICATE)
    pairs = similar_pairs(normalize(rows), normalize(columns), least_cosine, limits).tocoo()
    sizes, others = np.diff(rows.indptr)[pairs.row], np.diff(columns.indptr)[pairs.col]
    common = pairs.data * np.sqrt(sizes * others)
    pairs.data = (common / (sizes + others - common)).astype(np.float32)
    pairs.data[pairs.data < np.float32(NEAR_DUPLICATE) - ROUNDING] = 0
    found = pairs.tocsr()
    found.eliminate_zeros()
    return found


def _columns_by_similarity(pairs: Matrix, row: int) -> list[int]:
    part = slice(pairs.indptr[row], pairs.indptr[row + 1])
    order = np.argsort(-pairs.data[part], kind="stable")
    columns: list[int] = pairs.indices[part][order].tolist()
    return columns


_BY_GRAM: Final[dict[str, Any]] = {"analyzer": "char", "ngram_range": (4, 4), "preprocessor": spelling}
"""Arguments of a vectorizer of character 4-grams."""


def _distinct(keys: Iterable[Hashable]) -> tuple[list[int], Integers]:
    """Return the first position of each distinct key, in order, and the number of each key's first position."""
    numbers: dict[Hashable, int] = {}
    first: list[int] = []
    of = []
    for position, key in enumerate(keys):
        number = numbers.setdefault(key, len(numbers))
        if number == len(first):
            first.append(position)
        of.append(number)
    return first, np.asarray(of, dtype=np.int64)


def _counts(vectorizer: CountVectorizer, documents: Sequence[Any]) -> Matrix:
    """Return the (n, terms) counts of terms; zeros if no document has a term."""
    try:
        return vectorizer.fit_transform(documents).astype(np.float32)
    except ValueError:  # scikit-learn refuses an empty vocabulary
        return csr_matrix((len(documents), 1), dtype=np.float32)


def _tf_idf(vectorizer: CountVectorizer, documents: Sequence[Any], repetitions: Integers) -> Matrix:
    """Return unit vectors of (1 + ln tf) * idf, with scikit-learn's smooth idf, as if each document were repeated."""
    counts = _counts(vectorizer, documents)
    counts.data = 1 + np.log(counts.data)
    having = np.bincount(
        counts.indices, np.repeat(repetitions, np.diff(counts.indptr)), minlength=counts.shape[1]
    )
    idf = np.log((1 + repetitions.sum()) / (1 + having)) + 1
    return normalize(counts @ diags(idf.astype(np.float32)))
