"""Questions about different subjects, which are similar only because a template repeats in them.

"What is the capital of Alabama?" and "What is the capital of Alaska?" have most words in common, as have two questions
after the same story. Their claims are no rivals. Two kinds of evidence tell such questions apart:

- **Words with many answers say little about what is asked.** A word counts as part of a template as far as more than
  `TEMPLATE_CLAIMS` claims were made in answer to questions with it (`subject_vectors`). Questions that are similar by
  all words are about different subjects if each has words of its own that weigh more than those they share
  (`SAME_SUBJECT`). So the shorter question decides, and whoever adds words to a question stays with its subject.
  Only claims that two users made count, or whose question has a word that no other claim's question has, because
  people who disagree on one subject make several claims, too.
- **A name or a number in the place of another one**: "chapter 3" and "chapter 4" (`substitutions.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix, triu

from services.trainer.dataset.corrections import Correction
from services.trainer.dataset.similar_pairs import Integers, Matrix, products
from services.trainer.dataset.similarity import Vectors
from services.trainer.dataset.substitutions import find_substitutions

CONTESTED: Final = 0.42
"""Minimum similarity of a question to a claim's questions for the claim to answer it."""
TEMPLATE_CLAIMS: Final = 3
SAME_SUBJECT: Final = 0.42
"""Weight of the words that two questions share, as a part of that of the question that weighs less."""


def similarity_by_subject(
    corrections: Sequence[Correction],
    questions: Vectors,
    similarity: Matrix,
    claim_of: Integers,
) -> Matrix:
    """Return the similarities of questions about the same subject.

    Args:
        corrections: The corrections.
        questions: Vectors of their questions.
        similarity: Similarities of these vectors from `CONTESTED` on.
        claim_of: Claim of each correction, as found by these similarities.

    """
    claims = claims_of_terms(corrections, questions, claim_of)
    vectors = subject_vectors(questions, claims)
    pairs = triu(similarity, k=1, format="coo")
    one, other = pairs.row.astype(np.int64), pairs.col.astype(np.int64)
    weight = np.asarray(vectors.multiply(vectors).sum(axis=1)).ravel()
    shared = products(vectors, vectors, (one, other))
    is_same = shared >= SAME_SUBJECT * np.minimum(weight[one], weight[other])
    substitutions = find_substitutions(corrections, questions, claim_of.tolist())
    is_same[is_same] = ~substitutions.between(one[is_same], other[is_same])
    pairs.data[~is_same] = 0
    found: Matrix = pairs.tocsr()
    found.eliminate_zeros()
    return (found + found.T).tocsr()


def subject_vectors(questions: Vectors, claims: Integers) -> Matrix:
    """Return (vectors, terms): the inverse document frequency of each term, less for terms of templates."""
    repetitions = np.bincount(questions.of)
    terms = questions.matrix.indices
    having = np.bincount(
        terms, np.repeat(repetitions, np.diff(questions.matrix.indptr)), minlength=questions.matrix.shape[1]
    )
    idf = np.log((1 + len(questions.of)) / (1 + having)) + 1
    weight = (idf * (TEMPLATE_CLAIMS / np.maximum(claims, TEMPLATE_CLAIMS)) ** 2).astype(np.float32)
    return csr_matrix((weight[terms], terms, questions.matrix.indptr), shape=questions.matrix.shape)


def claims_of_terms(corrections: Sequence[Correction], questions: Vectors, claim_of: Integers) -> Integers:
    """Return for each term the number of claims that were made in answer to questions with it.

    A claim counts for a term if two users who asked with the term made it, or if it has a term that no other claim has.
    """
    pattern = questions.matrix.astype(np.bool_).astype(np.int32)
    _, user = np.unique([one.user for one in corrections], return_inverse=True)
    count = int(user.max()) + 1
    claim_and_user, row = np.unique(claim_of * count + user, return_inverse=True)
    claim = claim_and_user // count
    size = (len(claim_and_user), len(questions.of))
    asked = csr_matrix(
        (np.ones(len(row), dtype=np.int32), (row, questions.of)), shape=(size[0], pattern.shape[0])
    )
    wrote = asked @ pattern
    wrote.data[:] = 1
    of_claim = csr_matrix(
        (np.ones(len(claim), dtype=np.int32), (claim, np.arange(len(claim)))),
        shape=(int(claim.max()) + 1, len(claim)),
    )
    users: coo_matrix = (of_claim @ wrote).tocoo()
    claims_of_term = np.bincount(users.col, minlength=pattern.shape[1])
    has_own_term = np.zeros(users.shape[0], dtype=np.bool_)
    has_own_term[users.row[claims_of_term[users.col] == 1]] = True
    counts = (users.data >= 2) | has_own_term[users.row]
    found: Integers = np.bincount(users.col[counts], minlength=pattern.shape[1])
    return found
