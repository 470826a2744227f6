"""Similarity of short texts by their words and their spelling.

Lexical on purpose, without a model: these functions decide whose corrections train, so a decision must be deterministic
and explainable, and must not depend on what the model under training believes. Vectors are scikit-learn's; `words.py`
has the rules for words, numbers and negation.

Similarities are sparse matrices of the pairs that can matter, built block by block, so that memory grows with the
number of similar pairs and not with the square of the number of texts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from scipy.sparse import csr_matrix, vstack
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

from services.trainer.dataset.words import content_stems, normalised, spelling

Matrix: TypeAlias = csr_matrix
"""Sparse float32 matrix; a pair that is not stored has similarity 0."""

NEAR_DUPLICATE: Final = 0.6
"""Texts at least this similar count as one wording: training on one of them teaches the other."""
NEGLIGIBLE: Final = 0.05
"""Smaller similarities are dropped; every threshold of this package is at least this high."""
_BLOCK: Final = 512
"""Rows multiplied at a time."""


def question_similarity(questions: Sequence[str], others: Sequence[str] | None = None) -> Matrix:
    """Return the (questions, others) similarities; without `others`, those of the questions with each other.

    A similarity is the mean of two TF-IDF cosines, of content stems and of character 4-grams: stems match a reordered
    question, spelling matches an inflected one. Document frequencies are those of all given texts, so a value depends
    on all of them.
    """
    texts = [*questions, *(others or ())]
    stems = _vectors(TfidfVectorizer(analyzer=content_stems, sublinear_tf=True, dtype=np.float32), texts)
    grams = _vectors(TfidfVectorizer(**_BY_GRAM, sublinear_tf=True, dtype=np.float32), texts)
    columns = slice(None) if others is None else slice(len(questions), None)
    return _in_blocks(
        len(questions), lambda rows: (stems[rows] @ stems[columns].T + grams[rows] @ grams[columns].T) / 2
    )


def stem_similarity(documents: Sequence[Iterable[str]]) -> Matrix:
    """Return the (n, n) TF-IDF cosines of documents that are given as stems."""
    vectors = _vectors(TfidfVectorizer(analyzer=iter, sublinear_tf=True, dtype=np.float32), documents)
    return _in_blocks(len(documents), lambda rows: vectors[rows] @ vectors.T)


def near_duplicates(candidates: Sequence[str], known: Iterable[str]) -> list[bool]:
    """Return for each candidate whether it is a near-duplicate of any known text."""
    return [bool(found) for found in near_duplicates_in(candidates, sorted(set(known)))]


def near_duplicates_in(candidates: Sequence[str], known: Sequence[str]) -> list[list[int]]:
    """Return for each candidate the positions of its near-duplicates in `known`, in order.

    Texts are near-duplicates if they have the same words, or if the larger of the Jaccard index of their content stems
    and the cosine of their character 4-grams is at least `NEAR_DUPLICATE`. The larger one counts, so that a change of
    order or of inflection alone hides nothing. Unlike `question_similarity` this depends on the two texts only.
    """
    same_words: dict[str, list[int]] = defaultdict(list)
    for position, text in enumerate(known):
        same_words[normalised(text)].append(position)
    texts = [*candidates, *known]
    stems = _vectors(CountVectorizer(analyzer=content_stems, binary=True), texts)
    grams = _vectors(TfidfVectorizer(**_BY_GRAM, use_idf=False), texts)
    stem_counts = np.diff(stems.indptr)
    found: list[list[int]] = []
    for start in range(0, len(candidates), _BLOCK):
        rows = slice(start, min(start + _BLOCK, len(candidates)))
        columns = slice(len(candidates), None)
        common = (stems[rows] @ stems[columns].T).tocoo()
        either = stem_counts[rows][common.row] + stem_counts[columns][common.col] - common.data
        jaccard = csr_matrix((common.data / either, (common.row, common.col)), shape=common.shape)
        similar = jaccard.maximum(grams[rows] @ grams[columns].T) >= NEAR_DUPLICATE
        for row, text in enumerate(candidates[rows]):
            positions = similar.indices[similar.indptr[row] : similar.indptr[row + 1]].tolist()
            found.append(sorted({*same_words[normalised(text)], *positions}))
    return found


_BY_GRAM: Final[dict[str, Any]] = {"analyzer": "char", "ngram_range": (4, 4), "preprocessor": spelling}
"""Arguments of a vectorizer of character 4-grams."""


def _vectors(vectorizer: CountVectorizer, documents: Sequence[Any]) -> Matrix:
    """Return the (n, terms) vectors of documents; zero vectors if none of them has a term."""
    try:
        return vectorizer.fit_transform(documents)
    except ValueError:  # scikit-learn refuses an empty vocabulary
        return csr_matrix((len(documents), 1), dtype=np.float32)


def _in_blocks(size: int, product: Callable[[slice], Matrix]) -> Matrix:
    """Return a product of `size` rows without its negligible entries, computed block by block."""
    blocks = []
    for start in range(0, size, _BLOCK):
        block = product(slice(start, min(start + _BLOCK, size)))
        block.data[block.data < NEGLIGIBLE] = 0
        block.eliminate_zeros()
        blocks.append(block)
    return vstack(blocks, format="csr")
