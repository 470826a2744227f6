"""Part 3 of agreement: rivals, claims that answer the same questions and contradict each other, and which may train.

Two claims are rivals if at least half of the smaller claim's questions ask for what the other answers, and they may
not stand side by side (`open_questions.py`). A claim trains if it leads each rival (`votes.py`: twice its users, or
enough recent ones). Claims that say the same in other words to the same questions are allies: each defends itself with
the votes of both, but attacks with its own alone, so a chain of loosely similar claims outvotes nobody. A single
correction of a claim that trains is still left out if a claim that leads its own answers its question.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from scipy.sparse import csr_matrix, vstack

from services.trainer.dataset.claims import MAX_COMPARED, is_near_copy
from services.trainer.dataset.corrections import VALUES, Correction, differ, indices_by, shared_by_most
from services.trainer.dataset.open_questions import Claim, stand_side_by_side
from services.trainer.dataset.question_groups import SAME_QUESTION
from services.trainer.dataset.similar_pairs import ROUNDING, Integers, Matrix
from services.trainer.dataset.similarity import Vectors
from services.trainer.dataset.votes import ChangeRule, Votes, leads
from services.trainer.dataset.words import content_stems, is_negated, normalised

RIVAL_SHARE: Final = 0.5
SAME_KEYS: Final = 0.5
MAX_CLAIMS: Final = 32
"""Most claims that count for one question, those of most users."""
_ASKERS_AT_ONCE: Final = 8192
Booleans: TypeAlias = csr_matrix
"""Sparse matrix of bool."""


def opponents(
    corrections: Sequence[Correction],
    questions: Vectors,
    similarity: Matrix,
    groups: Sequence[int],
    claim_of: Sequence[int],
    rule: ChangeRule,
) -> tuple[list[int | None], list[str | None]]:
    """Return the claim because of which each correction does not train, or None, and the verdict (see `Agreement`).

    That is a rival that its claim does not lead, or a claim that leads its own and answers its question.
    """
    members = indices_by(claim_of)
    votes = [_votes(corrections, member) for member in members]
    asked = _asked_claims(corrections, questions, similarity, claim_of, [len(each) for each in votes])
    keys = [
        shared_by_most(corrections, member, lambda one: one.own_stems, len(votes[claim]))
        for claim, member in enumerate(members)
    ]
    usual_values = [
        [shared_by_most(corrections, member, values_of, len(votes[claim])) for values_of in VALUES]
        for claim, member in enumerate(members)
    ]
    said = [
        Claim([(corrections[i].question, corrections[i].answer) for i in member], len(votes[claim]))
        for claim, member in enumerate(members)
    ]
    users_in = [len({corrections[i].user for i in member}) for member in indices_by(groups)]
    agreeing = {groups[i] for i, claim in enumerate(claim_of) if len(votes[claim]) > 1}
    beaten_by: list[int | None] = [None] * len(members)
    led_by: list[set[int]] = [set() for _ in members]
    contests = _contests(asked, [len(each) for each in votes])
    same = {
        (one, other)
        for one, other, _ in contests
        if _same_answer(keys[one], keys[other], said[one], said[other])
        and not any(map(differ, usual_values[one], usual_values[other]))
        and not _denies(corrections, members[one], members[other])
    }
    allies = _allies(contests, same)
    for one, other, are_rivals in contests:
        if (one, other) in same:
            continue
        both = {groups[members[one][0]], groups[members[other][0]]}
        asked_by = max(users_in[group] for group in both)
        if stand_side_by_side(said[one], said[other], asked_by, agreed=bool(both & agreeing)):
            continue
        own = _with_allies(one, other, votes, allies)
        if are_rivals and not leads(own, votes[other], rule):
            beaten_by[one] = other
        if leads(votes[other], own, rule):
            led_by[one].add(other)
    found: list[int | None] = []
    verdicts: list[str | None] = []
    leaders = [
        min(led_by[claim].intersection(asked.of(asker)), default=None)
        for asker, claim in enumerate(asked.claim.tolist())
    ]
    for claim, asker in zip(claim_of, asked.asker.tolist(), strict=True):
        opponent = beaten_by[claim] if beaten_by[claim] is not None else leaders[asker]
        found.append(opponent)
        verdicts.append(None if opponent is None else _verdict(votes[claim], votes[opponent], rule))
    return found, verdicts


def _votes(corrections: Sequence[Correction], members: Sequence[int]) -> Votes:
    newest: dict[str, int] = {}
    for i in members:
        user, at = corrections[i].user, corrections[i].at_ms
        newest[user] = max(at, newest.get(user, at))
    return newest


def _allies(
    contests: Sequence[tuple[int, int, bool]], same: Container[tuple[int, int]]
) -> Mapping[int, frozenset[int]]:
    """Return the claims that say the same as a claim in answer to the same questions."""
    found: dict[int, set[int]] = defaultdict(set)
    for one, other, are_rivals in contests:
        if are_rivals and (one, other) in same and (other, one) in same:
            found[one].add(other)
    return {claim: frozenset(allies) for claim, allies in found.items()}


def _with_allies(
    claim: int, rival: int, votes: Sequence[Votes], allies: Mapping[int, frozenset[int]]
) -> Votes:
    """Return the votes for a claim and its allies, except for allies that are the rival's as well."""
    joined = dict(votes[claim])
    none: frozenset[int] = frozenset()
    for ally in allies.get(claim, none) - allies.get(rival, none) - {rival}:
        for user, at in votes[ally].items():
            joined[user] = max(at, joined.get(user, at))
    return joined


def _verdict(own: Votes, opponent: Votes, rule: ChangeRule) -> str:
    if len(opponent) > len(own):
        return "outvoted"
    return "outdated" if leads(opponent, own, rule) else "disputed"


@dataclass(frozen=True, slots=True)
class _AskedClaims:
    """Which claims answer the questions of a claim. An asker is a wording together with the claim of its answer."""

    asker: Integers
    """(n,) asker of each correction."""
    claim: Integers
    """(askers,) claim of each asker."""
    asks_for: Booleans
    """(askers, claims)"""

    def of(self, asker: int) -> list[int]:
        """Return the claims that an asker asks for."""
        found: list[int] = self.asks_for.indices[
            self.asks_for.indptr[asker] : self.asks_for.indptr[asker + 1]
        ].tolist()
        return found


def _asked_claims(
    corrections: Sequence[Correction],
    questions: Vectors,
    similarity: Matrix,
    claim_of: Sequence[int],
    users: Sequence[int],
) -> _AskedClaims:
    """Return which claims answer which question.

    It must be similar enough to one of the claim's questions, and no less similar to it than to the other wordings of
    its own claim. Without the second condition "Who founded it?" would rival "When was it founded?". If more than
    `MAX_CLAIMS` claims answer one question, those with most users count.
    """
    claims_, count = np.asarray(claim_of, dtype=np.int64), len(users)
    wording = np.unique([normalised(one.question) for one in corrections], return_inverse=True)[1]
    askers, first, asker = np.unique(
        wording.astype(np.int64) * count + claims_, return_index=True, return_inverse=True
    )
    vector, own_claim = questions.of[first], askers % count
    # Whether a claim has a question, and whether it has several wordings with the same vector.
    answered, answering, wordings = np.unique(
        vector * count + own_claim, return_inverse=True, return_counts=True
    )
    to_own = np.where(wordings[answering] > 1, np.float32(1), np.float32(0))
    claims_of_vector = _claims_of_vectors(answered, np.asarray(users), questions.matrix.shape[0])
    is_empty = np.diff(questions.matrix.indptr)[vector] == 0
    blocks: list[Booleans] = []
    for start in range(0, len(askers), _ASKERS_AT_ONCE):
        part = slice(start, start + _ASKERS_AT_ONCE)
        near = similarity[vector[part]].tocoo()
        key = near.col.astype(np.int64) * count + own_claim[part][near.row]
        place = np.minimum(np.searchsorted(answered, key), len(answered) - 1)
        own = answered[place] == key
        np.maximum.at(to_own[part], near.row[own], near.data[own])
        # Similarities begin at `CONTESTED`.
        asks = (near.data >= SAME_QUESTION - ROUNDING) | (near.data >= to_own[part][near.row])
        own_row = np.flatnonzero(~is_empty[part])
        rows = np.concatenate((near.row[asks], own_row))
        columns = np.concatenate((near.col[asks], vector[part][own_row]))
        size = (len(vector[part]), questions.matrix.shape[0])
        asked = csr_matrix((np.ones(len(rows), dtype=np.int32), (rows, columns)), shape=size)
        blocks.append((asked @ claims_of_vector).astype(np.bool_))
    return _AskedClaims(asker, own_claim, vstack(blocks, format="csr"))


def _claims_of_vectors(answered: Integers, users: Integers, vectors: int) -> csr_matrix:
    """Return (vectors, claims) ones: the `MAX_CLAIMS` claims of most users that answer a question.

    `answered` has the number of a vector times the number of claims, plus a claim, for each claim that answers it.
    """
    vector, claim = np.divmod(answered, len(users))
    order = np.lexsort((claim, -users[claim], vector))
    vector, claim = vector[order], claim[order]
    rank = np.arange(len(vector)) - np.searchsorted(vector, vector)
    kept = rank < MAX_CLAIMS
    return csr_matrix(
        (np.ones(kept.sum(), dtype=np.int32), (vector[kept], claim[kept])), shape=(vectors, len(users))
    )


def _contests(asked: _AskedClaims, users: Sequence[int]) -> list[tuple[int, int, bool]]:
    """Return the ordered pairs of claims with a question in common, each with whether they are rivals.

    Rivals share at least `RIVAL_SHARE` of the questions of the claim with fewer users.
    """
    count, weight = len(users), np.bincount(asked.asker).astype(np.float64)
    belongs = csr_matrix((weight, (asked.claim, np.arange(len(weight)))), shape=(count, len(weight)))
    overlap = (belongs @ asked.asks_for.astype(np.float64)).tocoo()
    apart = overlap.row != overlap.col
    rows, columns = overlap.row[apart].astype(np.int64), overlap.col[apart].astype(np.int64)
    share = overlap.data[apart] / np.bincount(asked.claim, weight, minlength=count)[rows]
    known = rows * count + columns
    order = np.argsort(known)
    known, share = known[order], share[order]
    if not len(known):
        return []
    one, other = np.divmod(np.unique(np.concatenate((known, columns * count + rows))), count)
    having = np.asarray(users)
    is_smaller = (having[one] < having[other]) | ((having[one] == having[other]) & (one > other))
    directed = np.where(is_smaller, one * count + other, other * count + one)
    place = np.minimum(np.searchsorted(known, directed), len(known) - 1)
    are_rivals = (known[place] == directed) & (share[place] >= RIVAL_SHARE)
    return list(zip(one.tolist(), other.tolist(), are_rivals.tolist(), strict=True))


def _denies(corrections: Sequence[Correction], one: Sequence[int], other: Sequence[int]) -> bool:
    """Return whether a claim is a near copy of the other except for a negation."""
    negated = is_negated(corrections[other[0]].answer)
    if is_negated(corrections[one[0]].answer) == negated:
        return False
    same = [i for i in other if is_negated(corrections[i].answer) == negated][:MAX_COMPARED]
    stems = frozenset(content_stems(corrections[one[0]].answer))
    return is_near_copy(stems, (frozenset(content_stems(corrections[i].answer)) for i in same))


def _same_answer(keys: frozenset[str], other_keys: frozenset[str], one: Claim, other: Claim) -> bool:
    """Return whether at least `SAME_KEYS` of the shorter claim's keys are keys of the other.

    A claim without keys repeats its question, as "No, it isn't safe." does. It says the same as another denial, and
    otherwise all stems of its answer count. Where there are none ("Yes."), only a denial makes a difference.
    """
    denied = [is_negated(claim.answers[0]) for claim in (one, other)]
    if not (keys and other_keys) and all(denied):
        return True
    mine = keys or frozenset(content_stems(one.answers[0]))
    theirs = other_keys or frozenset(content_stems(other.answers[0]))
    if not mine and not theirs:
        return denied[0] is denied[1]
    return len(mine & theirs) >= SAME_KEYS * max(1, min(len(mine), len(theirs)))
