"""Agreement by meaning: which corrections answer the same question, which of them agree, and which may train.

1. Questions form groups by links. Two corrections are linked if their questions are similar (`SAME_QUESTION`), if their
   answers are similar (`SAME_ANSWER`) and their questions have something in common, or if their answers are nearly
   equal (`EQUAL_ANSWER`). Answers are compared by TF-IDF without the words of their own question. Links through answers
   join "Who founded it?" with "Whose idea was it?", so users who ask in other words can outvote a false answer.
2. Within a group, answers that share a distinctive stem make one claim. The stem that most users share comes first and
   takes all answers that contain it, except those that contradict: other numbers or operators, a near copy with other
   names, a negation. The weight of a claim is its number of distinct users.
3. Two claims are rivals if at least half of the smaller claim's questions ask for what the other answers, and they may
   not stand side by side (`open_questions.py`). A claim trains if it leads each rival (`votes.py`: twice its users, or
   enough recent ones). A single correction of a claim that trains is still left out if a claim that leads its own
   answers its question.

The thresholds were chosen on the demo world (24 facts, 10 wordings each); docs/decisions/verification.md has the
figures.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix, vstack
from scipy.sparse.csgraph import connected_components

from services.trainer.dataset.open_questions import Claim, stand_side_by_side
from services.trainer.dataset.similar_pairs import ROUNDING, Integers, Limits, Matrix
from services.trainer.dataset.similarity import Vectors, question_vectors, stem_vectors
from services.trainer.dataset.votes import ChangeRule, Votes, leads
from services.trainer.dataset.words import (
    content_stems,
    frequent_question_stems,
    is_negated,
    names,
    normalised,
    numbers,
    operators,
)

SAME_QUESTION: Final = 0.7
SAME_ANSWER: Final = 0.5
SOMETHING_IN_COMMON: Final = 0.05
EQUAL_ANSWER: Final = 0.9
CONTESTED: Final = 0.42
"""Minimum similarity of a question to a claim's questions for the claim to answer it."""
RIVAL_SHARE: Final = 0.5
SAME_KEYS: Final = 0.5
KEY_SHARE: Final = 2 / 3
"""A stem that this share of a claim's users wrote is one of the claim's keys."""
DENIAL_OVERLAP: Final = 0.6
"""Jaccard index of stems from which an answer is a near copy of another."""
MAX_CROSS_PAIRS: Final = 4096
"""Most pairs of questions that are compared because of one answer; beyond, only pairs with a common term are."""
MAX_COMPARED: Final = 200
"""Most distinct answers of a claim that are compared with an answer that denies one."""
MAX_CLAIMS: Final = 32
"""Most claims that count for one question, those of most users."""
_PAIRS_AT_ONCE: Final = 1_000_000
_ASKERS_AT_ONCE: Final = 8192
Booleans: TypeAlias = csr_matrix
"""Sparse matrix of bool."""
Pairs: TypeAlias = tuple[Integers, Integers]
_NO_PAIRS: Final[Integers] = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Correction:
    """One user's answer to one question."""

    user: str
    question: str
    answer: str
    own_stems: frozenset[str]
    """Stems of the answer that are neither in its question nor in two wordings of any question. People who ask do not
    know the answer, so the answer is about these."""
    at_ms: int = 0
    """When the user gave it, in ms since 1970."""

    def own_numbers(self) -> frozenset[str]:
        """Return the numbers of the answer that are not in the question."""
        return numbers(self.answer) - numbers(self.question)

    def own_operators(self) -> frozenset[str]:
        """Return the operators of the answer that are not in the question, such as `<=` and the `++` of `C++`."""
        return operators(self.answer) - operators(self.question)

    def own_names(self) -> frozenset[str]:
        """Return the names among the own stems."""
        return names(self.answer) & self.own_stems


_VALUES: Final = (Correction.own_numbers, Correction.own_operators, Correction.own_names)
"""What answers can contradict each other in, if both have some."""


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


def corrections_of(rows: Sequence[tuple[str, str, str]], at_ms: Sequence[int] = ()) -> list[Correction]:
    """Return the corrections given as (user, question, answer), with the times at which they were given, if known."""
    common = frequent_question_stems(question for _, question, _ in rows)
    return [
        Correction(
            user,
            question,
            answer,
            frozenset(content_stems(answer)) - frozenset(content_stems(question)) - common,
            at,
        )
        for (user, question, answer), at in zip(rows, at_ms or [0] * len(rows), strict=True)
    ]


def find_agreement(
    corrections: Sequence[Correction], rule: ChangeRule | None = None, limits: Limits | None = None
) -> Agreement:
    """Apply the whole rule. The numbers depend on the order of the input, so callers sort it first.

    `limits` are those of each search for similar texts.
    """
    if not corrections:
        return Agreement([], [], [], [])
    questions = question_vectors([correction.question for correction in corrections])
    similarity = questions.similar(CONTESTED, limits)
    groups = question_groups(corrections, questions, similarity, limits)
    claim_of = [-1] * len(corrections)
    count = 0
    for members in _indices_by(groups):
        found = claims([corrections[i] for i in members])
        for i, claim in zip(members, found, strict=True):
            claim_of[i] = count + claim
        count += max(found) + 1
    claim_of = _join_equal_answers(corrections, claim_of)
    rivals, verdicts = opponents(corrections, questions, similarity, groups, claim_of, rule or ChangeRule())
    return Agreement(groups, claim_of, rivals, verdicts)


# --- 1. groups --------------------------------------------------------------------------------------------------


def question_groups(
    corrections: Sequence[Correction], questions: Vectors, similarity: Matrix, limits: Limits | None = None
) -> list[int]:
    """Return the group of each correction, numbered by first appearance.

    Args:
        corrections: The corrections.
        questions: Vectors of their questions; equal wordings share one.
        similarity: Similarities of these vectors from `CONTESTED` on.
        limits: Limits of the search for similar answers.

    """
    size = questions.matrix.shape[0]
    same_question = similarity.tocoo()
    is_same = same_question.data >= SAME_QUESTION - ROUNDING
    links = [
        (same_question.row[is_same], same_question.col[is_same]),
        _links_by_equal_answers(corrections, questions, limits),
    ]
    links.append(_links_by_similar_answers(corrections, questions, _components(size, links), limits))
    return _renumbered(_components(size, links)[questions.of])


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
    return _as_pairs(links)


def _links_by_similar_answers(
    corrections: Sequence[Correction], questions: Vectors, components: Integers, limits: Limits | None
) -> Pairs:
    """Return pairs of questions that have something in common, and answers that are similar.

    Only pairs that join two of the given components are of interest.
    """
    answers = stem_vectors([tuple(sorted(one.own_stems)) for one in corrections])
    similar = answers.similar(SAME_ANSWER, limits)
    asked: dict[int, dict[int, None]] = defaultdict(dict)
    for answer, question in zip(answers.of.tolist(), questions.of.tolist(), strict=True):
        asked[answer][question] = None
    has_stems = np.diff(answers.matrix.indptr) > 0
    found: list[Pairs] = []
    waiting: list[Pairs] = []
    for answer, own in asked.items():
        neighbours = similar.indices[similar.indptr[answer] : similar.indptr[answer + 1]].tolist()
        one = np.fromiter(own, dtype=np.int64)
        other = np.unique([question for near in (answer, *neighbours) for question in asked[near]])
        if not has_stems[answer] or (components[other] == components[one[0]]).all():
            continue
        pairs = _pairs_to_compare(questions.matrix, one, other)
        joins = components[pairs[0]] != components[pairs[1]]
        waiting.append((pairs[0][joins], pairs[1][joins]))
        if sum(len(part) for part, _ in waiting) >= _PAIRS_AT_ONCE:
            found.append(_with_something_in_common(questions, waiting))
            waiting = []
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


def _as_pairs(links: Sequence[tuple[int, int]]) -> Pairs:
    array = np.asarray(links, dtype=np.int64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _components(size: int, links: Sequence[Pairs]) -> Integers:
    """Return the number of the connected component of each node."""
    rows, columns = (np.concatenate(part) for part in zip(*links, strict=True))
    graph = coo_matrix((np.ones(len(rows), dtype=np.bool_), (rows, columns)), shape=(size, size))
    labels: Integers = connected_components(graph.tocsr(), directed=False)[1].astype(np.int64)
    return labels


def _renumbered(labels: Integers) -> list[int]:
    """Return the labels numbered by first appearance."""
    numbering: dict[int, int] = {}
    return [numbering.setdefault(label, len(numbering)) for label in labels.tolist()]


# --- 2. claims --------------------------------------------------------------------------------------------------


def claims(group: Sequence[Correction]) -> list[int]:
    """Return the claim of each correction of one group, numbered from the stem that most users share."""
    out = [-1] * len(group)
    answer_stems = [frozenset(content_stems(one.answer)) for one in group]
    having: dict[str, list[int]] = defaultdict(list)
    for i, stems in enumerate(answer_stems):
        for word in stems:
            having[word].append(i)
    sharing = _StemUsers(group)
    number = 0
    while (key := sharing.pop()) is not None:
        members = [i for i in having[key] if out[i] < 0]
        kept = _without_contradictions(group, answer_stems, members)
        for i in kept:
            out[i] = number
            sharing.remove(group[i])
        number += bool(kept)
    return _claims_without_stems(group, out, number)


class _StemUsers:
    """The users of each own stem of corrections. The stem that most users share is taken first, each stem once."""

    def __init__(self, corrections: Iterable[Correction]) -> None:
        self._times: dict[str, Counter[str]] = defaultdict(Counter)
        for one in corrections:
            for word in one.own_stems:
                self._times[word][one.user] += 1
        self._queue = [(-len(users), word) for word, users in self._times.items()]
        heapq.heapify(self._queue)

    def pop(self) -> str | None:
        """Take the stem of most users, of several the first in the alphabet; None if no stem has users."""
        while self._queue:
            count, word = heapq.heappop(self._queue)
            users = len(self._times[word])
            if users == -count:
                return word if self._times.pop(word) else None
            if users:
                heapq.heappush(self._queue, (-users, word))
        return None

    def remove(self, correction: Correction) -> None:
        """Stop counting a correction."""
        for word in correction.own_stems:
            users = self._times.get(word)
            if users is not None:
                users[correction.user] -= 1
                if not users[correction.user]:
                    del users[correction.user]


def _without_contradictions(
    group: Sequence[Correction], answer_stems: Sequence[frozenset[str]], members: Sequence[int]
) -> list[int]:
    """Return the members that agree with most of them."""
    user_count = len({group[i].user for i in members})
    keys = _shared_by_most(group, members, lambda one: one.own_stems, user_count)
    usual_values = [(values_of, _most_shared(group, members, values_of)) for values_of in _VALUES]
    denying = 2 * len({group[i].user for i in members if is_negated(group[i].answer)}) > user_count
    deniable = _most_given(answer_stems, [i for i in members if is_negated(group[i].answer) == denying])
    kept = []
    for i in members:
        other_value = any(_differ(usual, values_of(group[i])) for values_of, usual in usual_values)
        other_words = 2 * len(keys & answer_stems[i]) <= len(keys) and bool(group[i].own_stems - keys)
        denies = is_negated(group[i].answer) != denying and _is_near_copy(answer_stems[i], deniable)
        if not other_value and not other_words and not denies:
            kept.append(i)
    return kept


def _most_shared(
    group: Sequence[Correction], members: Sequence[int], values_of: Callable[[Correction], frozenset[str]]
) -> frozenset[str]:
    """Return the set of values that most users gave, among the members that gave any."""
    users: dict[frozenset[str], set[str]] = defaultdict(set)
    for i in members:
        if values := values_of(group[i]):
            users[values].add(group[i].user)
    return min(users, key=lambda given: (-len(users[given]), sorted(given)), default=frozenset())


def _shared_by_most(
    corrections: Sequence[Correction],
    members: Sequence[int],
    terms: Callable[[Correction], frozenset[str]],
    user_count: int,
) -> frozenset[str]:
    users: dict[str, set[str]] = defaultdict(set)
    for i in members:
        for term in terms(corrections[i]):
            users[term].add(corrections[i].user)
    return frozenset(term for term, having in users.items() if len(having) >= KEY_SHARE * user_count)


def _most_given(answer_stems: Sequence[frozenset[str]], members: Sequence[int]) -> list[frozenset[str]]:
    """Return the distinct answers of members, at most `MAX_COMPARED` of them, those that were given most often."""
    given = Counter(answer_stems[i] for i in members)
    return [answer for answer, _ in given.most_common(MAX_COMPARED)]


def _is_near_copy(own: frozenset[str], others: Iterable[frozenset[str]]) -> bool:
    return any(len(own & other) >= DENIAL_OVERLAP * max(1, len(own | other)) for other in others)


def _claims_without_stems(group: Sequence[Correction], out: list[int], number: int) -> list[int]:
    """Put answers without a distinctive stem (`Yes.`, `No, it isn't.`) into claims by negation and numbers."""
    known: dict[tuple[bool, frozenset[str]], int] = {}
    for i, claim in enumerate(out):
        if claim < 0:
            key = (is_negated(group[i].answer), group[i].own_numbers())
            out[i] = known.setdefault(key, number + len(known))
    return out


def _join_equal_answers(corrections: Sequence[Correction], claim_of: Sequence[int]) -> list[int]:
    """Join claims of different groups that contain the same answer."""
    first: dict[str, int] = {}
    pairs = [
        (first.setdefault(normalised(one.answer), claim), claim)
        for one, claim in zip(corrections, claim_of, strict=True)
        if len(one.own_stems) >= 2
    ]
    joined = _components(max(claim_of) + 1, [_as_pairs(pairs)])
    return _renumbered(joined[np.asarray(claim_of)])


# --- 3. rivals --------------------------------------------------------------------------------------------------


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
    members = _indices_by(claim_of)
    votes = [_votes(corrections, member) for member in members]
    asked = _asked_claims(corrections, questions, similarity, claim_of, [len(each) for each in votes])
    keys = [
        _shared_by_most(corrections, member, lambda one: one.own_stems, len(votes[claim]))
        for claim, member in enumerate(members)
    ]
    usual_values = [
        [_shared_by_most(corrections, member, values_of, len(votes[claim])) for values_of in _VALUES]
        for claim, member in enumerate(members)
    ]
    said = [
        Claim([(corrections[i].question, corrections[i].answer) for i in member], len(votes[claim]))
        for claim, member in enumerate(members)
    ]
    users_in = [len({corrections[i].user for i in member}) for member in _indices_by(groups)]
    agreeing = {groups[i] for i, claim in enumerate(claim_of) if len(votes[claim]) > 1}
    beaten_by: list[int | None] = [None] * len(members)
    led_by: list[set[int]] = [set() for _ in members]
    for one, other, are_rivals in _contests(asked, [len(each) for each in votes]):
        same = _same_answer(keys[one], keys[other], said[one], said[other]) and not any(
            map(_differ, usual_values[one], usual_values[other])
        )
        if same and not _denies(corrections, members[one], members[other]):
            continue
        both = {groups[members[one][0]], groups[members[other][0]]}
        asked_by = max(users_in[group] for group in both)
        if stand_side_by_side(said[one], said[other], asked_by, agreed=bool(both & agreeing)):
            continue
        if are_rivals and not leads(votes[one], votes[other], rule):
            beaten_by[one] = other
        if leads(votes[other], votes[one], rule):
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
    blocks = []
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
    return _is_near_copy(stems, (frozenset(content_stems(corrections[i].answer)) for i in same))


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


def _differ(one: frozenset[str], other: frozenset[str]) -> bool:
    return bool(one) and bool(other) and not one & other


def _indices_by(labels: Iterable[int]) -> list[list[int]]:
    """Return the positions of each label 0, 1, ..."""
    positions: dict[int, list[int]] = defaultdict(list)
    for i, label in enumerate(labels):
        positions[label].append(i)
    return [positions[label] for label in range(len(positions))]
