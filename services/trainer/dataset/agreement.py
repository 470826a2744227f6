"""Agreement by meaning: which corrections answer the same question, which of them agree, and which may train.

1. Questions form groups by links between similar questions and similar answers (`question_groups.py`).
2. Within a group, answers that share a distinctive stem make one claim (`claims.py`).
3. Claims that answer the same questions are rivals. A claim trains if it leads each rival (`rivals.py`).

Parts 1 and 2 are done twice. The first time, questions are compared by their words alone. Its claims show which words
are a template and which name what is asked about, so the second time, and in part 3, questions about different subjects
are not similar (`subjects.py`), and questions that differ only in stories as context are equal
(`stories.py`). Answers under the wrong question do not count for the claim that they repeat (`misplaced.py`).

The thresholds were chosen on the demo world (24 facts, 10 wordings each); docs/decisions/verification.md has the
figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.trainer.dataset.claims import claims, join_equal_answers
from services.trainer.dataset.corrections import Correction, corrections_of, indices_by
from services.trainer.dataset.misplaced import split_misplaced
from services.trainer.dataset.question_groups import SimilarAnswers, question_groups, similar_answers
from services.trainer.dataset.rivals import opponents
from services.trainer.dataset.similar_pairs import Limits, Matrix
from services.trainer.dataset.similarity import Vectors, question_vectors
from services.trainer.dataset.stories import same_but_for_stories
from services.trainer.dataset.subjects import CONTESTED, similarity_by_subject
from services.trainer.dataset.votes import ChangeRule

__all__ = ["Agreement", "Correction", "claims", "corrections_of", "find_agreement"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Result for each correction, in the order of the input."""

    group: list[int]
    """Number of its question group."""
    claim: list[int]
    """Number of its claim."""
    opponent: list[int | None]
    """The claim because of which it does not train; None if it trains."""
    verdict: list[str | None]
    """Why it does not train: `outvoted` by more users, `outdated` by fewer but recent ones, or `disputed`, if neither
    claim leads."""


def find_agreement(
    corrections: Sequence[Correction], rule: ChangeRule | None = None, limits: Limits | None = None
) -> Agreement:
    """Apply the whole rule. The numbers depend on the order of the input, so callers sort it first.

    `limits` are those of each search for similar texts.
    """
    if not corrections:
        return Agreement([], [], [], [])
    rule = rule or ChangeRule()
    questions = question_vectors([correction.question for correction in corrections])
    answers = similar_answers(corrections, questions, limits)
    similarity = questions.similar(CONTESTED, limits)
    _, first_claims = _groups_and_claims(corrections, questions, similarity, answers)
    similarity = similarity_by_subject(
        corrections, questions, similarity, np.asarray(first_claims, dtype=np.int64)
    )
    similarity = similarity.maximum(same_but_for_stories(corrections, questions, first_claims)).tocsr()
    groups, claim_of = _groups_and_claims(corrections, questions, similarity, answers)
    claim_of = split_misplaced(corrections, questions, similarity, claim_of, rule)
    rivals, verdicts = opponents(corrections, questions, similarity, groups, claim_of, rule)
    return Agreement(groups, claim_of, rivals, verdicts)


def _groups_and_claims(
    corrections: Sequence[Correction], questions: Vectors, similarity: Matrix, answers: SimilarAnswers
) -> tuple[list[int], list[int]]:
    """Return the group and the claim of each correction."""
    groups = question_groups(questions, similarity, answers)
    claim_of = [-1] * len(corrections)
    count = 0
    for members in indices_by(groups):
        found = claims([corrections[i] for i in members])
        for i, claim in zip(members, found, strict=True):
            claim_of[i] = count + claim
        count += max(found) + 1
    return groups, join_equal_answers(corrections, claim_of)
