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

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix, diags
from scipy.sparse.csgraph import connected_components

from services.trainer.dataset.open_questions import DISPERSED_USERS, Claim, stand_side_by_side
from services.trainer.dataset.similarity import Matrix, question_similarity, stem_similarity
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
Booleans: TypeAlias = csr_matrix
"""Sparse matrix of bool."""


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


def find_agreement(corrections: Sequence[Correction], rule: ChangeRule | None = None) -> Agreement:
    """Apply the whole rule. The numbers depend on the order of the input, so callers sort it first."""
    if not corrections:
        return Agreement([], [], [], [])
    similarity = question_similarity([correction.question for correction in corrections])
    groups = question_groups(corrections, similarity)
    claim_of = [-1] * len(corrections)
    count = 0
    for members in _indices_by(groups):
        found = claims([corrections[i] for i in members])
        for i, claim in zip(members, found, strict=True):
            claim_of[i] = count + claim
        count += max(found) + 1
    claim_of = _join_equal_answers(corrections, claim_of)
    rivals, verdicts = opponents(corrections, similarity, groups, claim_of, rule or ChangeRule())
    return Agreement(groups, claim_of, rivals, verdicts)


# --- 1. groups --------------------------------------------------------------------------------------------------


def question_groups(corrections: Sequence[Correction], similarity: Matrix) -> list[int]:
    """Return the group of each correction, numbered by first appearance. `similarity`: (n, n), of the questions."""
    same_answer = stem_similarity([sorted(one.own_stems) for one in corrections]) >= SAME_ANSWER
    equal_answer = stem_similarity([content_stems(one.answer) for one in corrections]) >= EQUAL_ANSWER
    # Answers without two stems of their own, such as "Yes.", equal each other whatever was asked.
    specific = diags([len(one.own_stems) >= 2 for one in corrections], dtype=np.bool_)
    links = (
        (similarity >= SAME_QUESTION)
        + same_answer.multiply(similarity >= SOMETHING_IN_COMMON)
        + specific @ equal_answer @ specific
        + _links(len(corrections), _same_wording(corrections))
    )
    return _components(links)


def _same_wording(corrections: Sequence[Correction]) -> list[tuple[int, int]]:
    first: dict[str, int] = {}
    return [(first.setdefault(normalised(one.question), i), i) for i, one in enumerate(corrections)]


def _links(size: int, pairs: Sequence[tuple[int, int]]) -> Booleans:
    rows, columns = zip(*pairs, strict=True) if pairs else ((), ())
    return coo_matrix((np.ones(len(pairs), dtype=np.bool_), (rows, columns)), shape=(size, size)).tocsr()


def _components(links: Booleans) -> list[int]:
    """Return the connected component of each node, numbered by first appearance."""
    numbering: dict[int, int] = {}
    labels = connected_components(links, directed=False)[1].tolist()
    return [numbering.setdefault(label, len(numbering)) for label in labels]


# --- 2. claims --------------------------------------------------------------------------------------------------


def claims(group: Sequence[Correction]) -> list[int]:
    """Return the claim of each correction of one group, numbered from the stem that most users share."""
    out = [-1] * len(group)
    answer_stems = [frozenset(content_stems(one.answer)) for one in group]
    spent: set[str] = set()
    number = 0
    while True:
        unclaimed = [i for i, claim in enumerate(out) if claim < 0 and group[i].own_stems - spent]
        if not unclaimed:
            break
        key = _most_shared_stem(group, unclaimed, spent)
        members = [i for i, claim in enumerate(out) if claim < 0 and key in answer_stems[i]]
        kept = _without_contradictions(group, answer_stems, members)
        spent.add(key)
        if not kept:
            continue
        for i in kept:
            out[i] = number
        number += 1
    return _claims_without_stems(group, out, number)


def _most_shared_stem(group: Sequence[Correction], unclaimed: Sequence[int], spent: set[str]) -> str:
    users: dict[str, set[str]] = defaultdict(set)
    for i in unclaimed:
        for word in group[i].own_stems - spent:
            users[word].add(group[i].user)
    return min(users, key=lambda word: (-len(users[word]), word))


def _without_contradictions(
    group: Sequence[Correction], answer_stems: Sequence[frozenset[str]], members: Sequence[int]
) -> list[int]:
    """Return the members that agree with most of them."""
    user_count = len({group[i].user for i in members})
    keys = _shared_by_most(group, members, lambda one: one.own_stems, user_count)
    usual_values = [(values_of, _most_shared(group, members, values_of)) for values_of in _VALUES]
    denying = 2 * len({group[i].user for i in members if is_negated(group[i].answer)}) > user_count
    kept = []
    for i in members:
        other_value = any(_differ(usual, values_of(group[i])) for values_of, usual in usual_values)
        other_words = 2 * len(keys & answer_stems[i]) <= len(keys) and bool(group[i].own_stems - keys)
        if not other_value and not other_words and not _denies_near_copy(group, i, members, denying=denying):
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


def _denies_near_copy(
    corrections: Sequence[Correction], i: int, members: Sequence[int], *, denying: bool
) -> bool:
    """Return whether answer `i` is a near copy of a member's answer except for a negation that most do not share."""
    if is_negated(corrections[i].answer) == denying:
        return False
    own = frozenset(content_stems(corrections[i].answer))
    for j in members:
        other = frozenset(content_stems(corrections[j].answer))
        overlap = len(own & other) / max(1, len(own | other))
        if is_negated(corrections[j].answer) == denying and overlap >= DENIAL_OVERLAP:
            return True
    return False


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
    joined = _components(_links(max(claim_of) + 1, pairs))
    numbering: dict[int, int] = {}
    return [numbering.setdefault(joined[claim], len(numbering)) for claim in claim_of]


# --- 3. rivals --------------------------------------------------------------------------------------------------


def opponents(
    corrections: Sequence[Correction],
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
    asks_for = _asked_claims(corrections, similarity, claim_of)
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
    dispersed = _dispersed_groups(groups, claim_of, votes)
    overlap = _overlap(asks_for, claim_of, members)
    beaten_by: list[int | None] = [None] * len(members)
    led_by: list[set[int]] = [set() for _ in members]
    for one, other in sorted({pair for a, b in overlap if a != b for pair in ((a, b), (b, a))}):
        same = _same_answer(keys[one], keys[other], said[one], said[other]) and not any(
            map(_differ, usual_values[one], usual_values[other])
        )
        if same and not _denies(corrections, members[one], members[other]):
            continue
        in_dispersed = groups[members[one][0]] in dispersed and groups[members[other][0]] in dispersed
        if stand_side_by_side(said[one], said[other], in_dispersed):
            continue
        smaller, larger = sorted((one, other), key=lambda claim: (len(votes[claim]), -claim))
        if overlap.get((smaller, larger), 0.0) >= RIVAL_SHARE and not leads(votes[one], votes[other], rule):
            beaten_by[one] = other
        if leads(votes[other], votes[one], rule):
            led_by[one].add(other)
    found: list[int | None] = []
    verdicts: list[str | None] = []
    for i, claim in enumerate(claim_of):
        asked = asks_for.indices[asks_for.indptr[i] : asks_for.indptr[i + 1]].tolist()
        leader = min(led_by[claim].intersection(asked), default=None)
        opponent = beaten_by[claim] if beaten_by[claim] is not None else leader
        found.append(opponent)
        verdicts.append(None if opponent is None else _verdict(votes[claim], votes[opponent], rule))
    return found, verdicts


def _votes(corrections: Sequence[Correction], members: Sequence[int]) -> Votes:
    newest: dict[str, int] = {}
    for i in members:
        user, at = corrections[i].user, corrections[i].at_ms
        newest[user] = max(at, newest.get(user, at))
    return newest


def _dispersed_groups(groups: Sequence[int], claim_of: Sequence[int], votes: Sequence[Votes]) -> set[int]:
    """Return the groups in which three or more users gave answers, of which no two agree."""
    claims_in: dict[int, set[int]] = defaultdict(set)
    for group, claim in zip(groups, claim_of, strict=True):
        claims_in[group].add(claim)
    return {
        group
        for group, found in claims_in.items()
        if len(set().union(*(votes[claim] for claim in found))) >= DISPERSED_USERS
        and all(len(votes[claim]) == 1 for claim in found)
    }


def _verdict(own: Votes, opponent: Votes, rule: ChangeRule) -> str:
    if len(opponent) > len(own):
        return "outvoted"
    return "outdated" if leads(opponent, own, rule) else "disputed"


def _asked_claims(corrections: Sequence[Correction], similarity: Matrix, claim_of: Sequence[int]) -> Booleans:
    """Return (n, claims): whether a question asks for what the claim answers.

    It must be similar enough to one of the claim's questions, and no less similar to it than to the other wordings of
    its own claim. Without the second condition "Who founded it?" would rival "When was it founded?".
    """
    claims_ = np.asarray(claim_of)
    wording = np.unique([normalised(one.question) for one in corrections], return_inverse=True)[1]
    pairs = similarity.tocoo()
    rows, columns, values = pairs.row, pairs.col, pairs.data
    other_wording = (claims_[rows] == claims_[columns]) & (wording[rows] != wording[columns])
    to_own = np.zeros(len(corrections), dtype=np.float32)
    np.maximum.at(to_own, rows[other_wording], values[other_wording])
    near = (values >= SAME_QUESTION) | ((values >= CONTESTED) & (values >= to_own[rows]))
    shape = (len(corrections), int(claims_.max()) + 1)
    asked = coo_matrix(
        (np.ones(near.sum(), dtype=np.int32), (rows[near], claims_[columns[near]])), shape=shape
    )
    return asked.tocsr().astype(np.bool_)


def _overlap(
    asks_for: Booleans, claim_of: Sequence[int], members: Sequence[Sequence[int]]
) -> dict[tuple[int, int], float]:
    """Return the share of a claim's questions that ask for another claim, for each pair of claims with any."""
    belongs = csr_matrix(
        (np.ones(len(claim_of), dtype=np.float64), (claim_of, range(len(claim_of)))),
        shape=(len(members), len(claim_of)),
    )
    counts = (belongs @ asks_for.astype(np.float64)).tocoo()
    return {
        (one, other): count / len(members[one])
        for one, other, count in zip(
            counts.row.tolist(), counts.col.tolist(), counts.data.tolist(), strict=True
        )
    }


def _denies(corrections: Sequence[Correction], one: Sequence[int], other: Sequence[int]) -> bool:
    """Return whether a claim is a near copy of the other except for a negation."""
    negated = is_negated(corrections[other[0]].answer)
    return _denies_near_copy(corrections, one[0], other, denying=negated)


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
