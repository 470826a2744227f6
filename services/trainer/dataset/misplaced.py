"""Answers under the wrong question: right for one question, and put under another one by mistake.

They say the same as the users of their own question, so they are part of that claim. Its votes would then count under
the other question, against the right answer to it. `split_misplaced` makes such corrections a claim of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, identity

from services.trainer.dataset.corrections import Correction
from services.trainer.dataset.question_groups import SAME_QUESTION, renumbered
from services.trainer.dataset.similar_pairs import ROUNDING, Integers, Matrix
from services.trainer.dataset.similarity import Vectors
from services.trainer.dataset.votes import LEAD, ChangeRule

ELSEWHERE: Final = 3
"""A claim belongs to other questions if more than this many times the users who made it here made it in all."""


def split_misplaced(
    corrections: Sequence[Correction],
    questions: Vectors,
    similarity: Matrix,
    claim_of: Sequence[int],
    rule: ChangeRule,
) -> list[int]:
    """Return the claims, with new ones for the corrections that are misplaced.

    A correction is misplaced if its claim belongs to other questions (`ELSEWHERE`), and another claim has at least
    `LEAD` times its users here, and as many as replace a fact (`ChangeRule.users`). Here is the same question in any
    wording. People who ask for one thing in many ways are few in each of them, so a claim does not belong elsewhere
    either if many of its users meet the other claim.
    """
    claims = np.asarray(claim_of, dtype=np.int64)
    count = int(claims.max()) + 1
    user = np.unique([one.user for one in corrections], return_inverse=True)[1]
    total = np.bincount(np.unique(np.stack((claims, user)), axis=1)[0], minlength=count)
    users = _users_by_question(questions, claims, user, total >= rule.users)
    same = similarity.copy()
    same.data = (same.data >= SAME_QUESTION - ROUNDING).astype(np.int32)
    same.eliminate_zeros()
    here: csr_matrix = ((same + identity(same.shape[0], dtype=np.int32, format="csr")) @ users).tocsr()
    users_at = _Neighbours(questions, claims, user, here)
    out = claims.copy()
    for vector in np.flatnonzero(
        (np.diff(here.indptr) > 1) & (np.diff(questions.matrix.indptr) > 0)
    ).tolist():
        part = slice(here.indptr[vector], here.indptr[vector + 1])
        of_claim = dict(
            zip(
                here.indices[part].tolist(),
                np.minimum(here.data[part], total[here.indices[part]]),
                strict=True,
            )
        )
        given = users.indices[users.indptr[vector] : users.indptr[vector + 1]].tolist()
        for claim in given:
            if ELSEWHERE * of_claim[claim] >= total[claim]:
                continue
            least = max(LEAD * of_claim[claim], rule.users)
            stronger = [other for other, number in of_claim.items() if other != claim and number >= least]
            if any(ELSEWHERE * users_at.near(claim, other) < total[claim] for other in stronger):
                out[(questions.of == vector) & (claims == claim)] = count + vector * count + claim
    return renumbered(out)


class _Neighbours:
    """How many users of a claim made it in answer to a question that another claim answers, too."""

    def __init__(self, questions: Vectors, claims: Integers, user: Integers, here: csr_matrix) -> None:
        self._questions, self._claims, self._user, self._here = questions, claims, user, here.tocsc()
        self._known: dict[tuple[int, int], int] = {}

    def near(self, claim: int, other: int) -> int:
        """Return the number of users of `claim` near `other`."""
        if (claim, other) not in self._known:
            vectors = self._here.indices[self._here.indptr[other] : self._here.indptr[other + 1]]
            rows = np.flatnonzero((self._claims == claim) & np.isin(self._questions.of, vectors))
            self._known[claim, other] = len(np.unique(self._user[rows]))
        return self._known[claim, other]


def _users_by_question(
    questions: Vectors, claims: Integers, user: Integers, counts: NDArray[np.bool_]
) -> csr_matrix:
    """Return (vectors, claims) the number of users who made a claim in answer to a question, for claims that count."""
    size = (questions.matrix.shape[0], len(counts))
    given = np.unique(np.stack((questions.of, claims, user)), axis=1)
    given = given[:, counts[given[1]]]
    ones = np.ones(given.shape[1], dtype=np.int32)
    return csr_matrix((ones, (given[0], given[1])), shape=size)
