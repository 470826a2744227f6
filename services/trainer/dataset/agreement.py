"""Which corrections speak of the same matter, which of them say the same, and whom to believe: agreement by meaning.

1. Questions are grouped by links. Two corrections are linked if their questions are alike (`SAME_QUESTION`), or their
   answers say nearly the same (`SAME_ANSWER`) and the questions have something in common, or their answers are all but
   equal (`EQUAL_ANSWER`). Answers count without the words of their own question, weighted by TF-IDF. Linking through
   answers brings "Who founded it?" and "Whose idea was it?" together, so that people who asked in other words can
   outvote a false answer.
2. Within a group, answers that share a distinctive word make one claim: the word that most people use goes first and
   takes all answers that have it, less those that contradict (other numbers, a near copy with other names, a denial).
   A claim weighs its distinct users.
3. Two claims are rivals if at least half of the smaller one's questions are like (`CONTESTED`) one of the other's. A
   claim trains if it has `LEAD` times the users of each rival; and one correction of it does not, if its own question
   is like one of any claim that outnumbers it so.

The thresholds were chosen on the demo's world (24 facts in 10 wordings): of pairs of questions at 0.65 or above none
asks for different facts, at 0.4 or above 6 % do.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.trainer.dataset.similarity import (
    Matrix,
    alike,
    asked_words,
    content,
    negated,
    normalised,
    numbers,
    weighted,
)

SAME_QUESTION = 0.65
SAME_ANSWER = 0.45
SOMETHING_IN_COMMON = 0.05
EQUAL_ANSWER = 0.9
CONTESTED = 0.4
RIVAL_SHARE = 0.5
SAME_KEYS = 0.5
LEAD = 2
"""A claim trains if it has at least so many times the users of the next one."""
KEY_SHARE = 2 / 3
"""A word used by this share of a claim's users is one of its keys."""
DENIAL_OVERLAP = 0.6


@dataclass(frozen=True, slots=True)
class Said:
    """One person's answer to one question."""

    user: str
    question: str
    answer: str
    own: frozenset[str]
    """What the answer says in words that are not its question's, and in no two wordings of any question: who asks does
    not know the answer, so what is in no question is what an answer is about."""

    def numbers(self) -> frozenset[str]:
        return numbers(self.answer) - numbers(self.question)


def heard(spoken: Sequence[tuple[str, str, str]]) -> list[Said]:
    """(user, question, answer) of all corrections, each with what it says of its own."""
    common = asked_words(question for _, question, _ in spoken)
    return [
        Said(user, question, answer, frozenset(content(answer)) - frozenset(content(question)) - common)
        for user, question, answer in spoken
    ]


def question_groups(said: Sequence[Said], questions: Matrix) -> list[int]:
    """The group of each, numbered by first appearance. `questions`: (n, n), their `alike`."""
    same_answer = _cosines([Counter(one.own) for one in said])
    equal_answer = _cosines([Counter(content(one.answer)) for one in said]) >= EQUAL_ANSWER
    linked = (
        (questions >= SAME_QUESTION)
        | ((same_answer >= SAME_ANSWER) & (questions >= SOMETHING_IN_COMMON))
        | (equal_answer & _telling(said))
    )
    links = [(int(i), int(j)) for i, j in zip(*np.nonzero(np.triu(linked, 1)), strict=True)]
    roots = components(len(said), [*links, *_same_wording(said)])
    numbering: dict[int, int] = {}
    return [numbering.setdefault(root, len(numbering)) for root in roots]


def _cosines(documents: Sequence[Counter[str]]) -> Matrix:
    rows = weighted(documents)
    return np.asarray((rows @ rows.T).toarray(), dtype=np.float32)


def components(n: int, links: Iterable[tuple[int, int]]) -> list[int]:
    """For each of `n`, the smallest index it is connected with."""
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for one, other in links:
        low, high = sorted((root(int(one)), root(int(other))))
        parent[high] = low
    return [root(i) for i in range(n)]


def _telling(said: Sequence[Said]) -> npt.NDArray[np.bool_]:
    """(n, n): both answers have at least two words of their own. A `Yes.` equals every other `Yes.`"""
    enough = np.array([len(one.own) >= 2 for one in said])
    return np.asarray(np.logical_and.outer(enough, enough))


def _same_wording(said: Sequence[Said]) -> list[tuple[int, int]]:
    first: dict[str, int] = {}
    return [(first.setdefault(normalised(one.question), i), i) for i, one in enumerate(said)]


def claims(said: Sequence[Said]) -> list[int]:
    """The claim of each answer of ONE group, numbered in the order found: the most widely held key first."""
    out = [-1] * len(said)
    own = [one.own for one in said]
    whole = [frozenset(content(one.answer)) for one in said]
    spent: set[str] = set()
    number = 0
    while True:
        open_ = [i for i, claim in enumerate(out) if claim < 0 and own[i] - spent]
        if not open_:
            break
        key = _widest_key(said, own, open_, spent)
        members = [i for i, claim in enumerate(out) if claim < 0 and key in whole[i]]
        kept = _without_contradictions(said, own, whole, members)
        spent.add(key)
        if not kept:
            continue
        for i in kept:
            out[i] = number
        number += 1
    return _plain_answers(said, out, number)


def _widest_key(
    said: Sequence[Said], own: Sequence[frozenset[str]], open_: Sequence[int], spent: set[str]
) -> str:
    users: dict[str, set[str]] = defaultdict(set)
    for i in open_:
        for word in own[i] - spent:
            users[word].add(said[i].user)
    return min(users, key=lambda word: (-len(users[word]), word))


def _without_contradictions(
    said: Sequence[Said],
    own: Sequence[frozenset[str]],
    whole: Sequence[frozenset[str]],
    members: Sequence[int],
) -> list[int]:
    """The members that fit to what most of them say."""
    everyone = len({said[i].user for i in members})
    keys = _held_by_most(said, members, lambda i: own[i], everyone)
    figures = _most_held_numbers(said, members)
    denying = 2 * len({said[i].user for i in members if negated(said[i].answer)}) > everyone
    kept = []
    for i in members:
        other_number = _differ(figures, said[i].numbers())
        other_words = 2 * len(keys & whole[i]) <= len(keys) and bool(own[i] - keys)
        if not other_number and not other_words and not _denies_a_copy(said, i, members, denying):
            kept.append(i)
    return kept


def _most_held_numbers(said: Sequence[Said], members: Sequence[int]) -> frozenset[str]:
    """The numbers of the widest held way to give any."""
    users: dict[frozenset[str], set[str]] = defaultdict(set)
    for i in members:
        if said[i].numbers():
            users[said[i].numbers()].add(said[i].user)
    return min(users, key=lambda held: (-len(users[held]), sorted(held)), default=frozenset())


def _held_by_most(
    said: Sequence[Said], members: Sequence[int], terms: Callable[[int], frozenset[str]], everyone: int
) -> frozenset[str]:
    users: dict[str, set[str]] = defaultdict(set)
    for i in members:
        for term in terms(i):
            users[term].add(said[i].user)
    return frozenset(term for term, who in users.items() if len(who) >= KEY_SHARE * everyone)


def _denies(said: Sequence[Said], one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether a claim is a near copy of the other, but for a denial."""
    first = said[other[0]]
    return _denies_a_copy(said, one[0], other, negated(first.answer))


def _denies_a_copy(said: Sequence[Said], i: int, members: Sequence[int], denying: bool) -> bool:
    """Whether this answer is a near copy of another member's, but for a denial that most do not share."""
    if negated(said[i].answer) == denying:
        return False
    mine = frozenset(content(said[i].answer))
    for j in members:
        theirs = frozenset(content(said[j].answer))
        overlap = len(mine & theirs) / max(1, len(mine | theirs))
        if negated(said[j].answer) == denying and overlap >= DENIAL_OVERLAP:
            return True
    return False


def _plain_answers(said: Sequence[Said], out: list[int], number: int) -> list[int]:
    """Answers without a distinctive word (`Yes.`, `No, it isn't.`) make claims by affirming or denying."""
    found: dict[tuple[bool, frozenset[str]], int] = {}
    for i, claim in enumerate(out):
        if claim < 0:
            key = (negated(said[i].answer), said[i].numbers())
            out[i] = found.setdefault(key, number + len(found))
    return out


def held_by(said: Sequence[Said], alike_: Matrix, claim_of: Sequence[int]) -> list[int | None]:
    """For each, the claim that keeps it from training: a rival that it does not lead 2 : 1, or one that outnumbers it
    on a question much like its own. None = it trains."""
    members = _by_claim(claim_of)
    users = [len({said[i].user for i in member}) for member in members]
    near = _near(said, alike_, claim_of, members)
    keys = [_held_by_most(said, member, lambda i: said[i].own, users[c]) for c, member in enumerate(members)]
    figures = [
        _held_by_most(said, member, lambda i: said[i].numbers(), users[c]) for c, member in enumerate(members)
    ]
    overlap = np.stack([near[member].mean(axis=0) for member in members])
    beaten_by: list[int | None] = [None] * len(members)
    against: list[list[int]] = [[] for _ in members]
    for one, other in ((a, b) for a in range(len(members)) for b in range(len(members)) if a != b):
        same = _agree(keys[one], keys[other]) and not _differ(figures[one], figures[other])
        if same and not _denies(said, members[one], members[other]):
            continue
        smaller, larger = sorted((one, other), key=lambda claim: (users[claim], -claim))
        if overlap[smaller, larger] >= RIVAL_SHARE and users[one] < LEAD * users[other]:
            beaten_by[one] = other
        if users[other] >= LEAD * users[one]:
            against[one].append(other)
    out: list[int | None] = []
    for i, claim in enumerate(claim_of):
        outnumbered = next((other for other in against[claim] if near[i, other]), None)
        out.append(beaten_by[claim] if beaten_by[claim] is not None else outnumbered)
    return out


def _near(
    said: Sequence[Said], alike_: Matrix, claim_of: Sequence[int], members: Sequence[Sequence[int]]
) -> npt.NDArray[np.bool_]:
    """(n, claims): whether a question asks for what the claim answers: alike enough, and no less than it is to the
    other wordings of its own claim. Without the second part, "Who founded it?" would rival "When was it founded?"."""
    wording = np.unique([normalised(one.question) for one in said], return_inverse=True)[1]
    to_claim = np.stack([alike_[:, member].max(axis=1) for member in members], axis=1)
    own_claim = np.equal.outer(np.asarray(claim_of), np.asarray(claim_of))
    other_wording = np.not_equal.outer(wording, wording)
    to_own = np.where(own_claim & other_wording, alike_, 0.0).max(axis=1, keepdims=True)
    return np.asarray((to_claim >= SAME_QUESTION) | ((to_claim >= CONTESTED) & (to_claim >= to_own)))


def _by_claim(claim_of: Sequence[int]) -> list[list[int]]:
    members: list[list[int]] = [[] for _ in range(max(claim_of) + 1)]
    for i, claim in enumerate(claim_of):
        members[claim].append(i)
    return members


def _agree(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether two claims say the same: at least `SAME_KEYS` of the shorter one's keys are the other's too."""
    return len(one & other) >= SAME_KEYS * max(1, min(len(one), len(other)))


def _differ(one: frozenset[str], other: frozenset[str]) -> bool:
    return bool(one) and bool(other) and not one & other


@dataclass(frozen=True, slots=True)
class Agreement:
    """Group and claim of each correction, and the claim that holds it back (None = it trains)."""

    group: list[int]
    claim: list[int]
    held_by: list[int | None]


def agree(said: Sequence[Said]) -> Agreement:
    """The whole rule over all corrections. Deterministic in the order of the input; sort it first."""
    if not said:
        return Agreement([], [], [])
    questions = alike([one.question for one in said])
    groups = question_groups(said, questions)
    claim_of = [-1] * len(said)
    count = 0
    for group in range(max(groups) + 1):
        members = [i for i, of in enumerate(groups) if of == group]
        found = claims([said[i] for i in members])
        for i, claim in zip(members, found, strict=True):
            claim_of[i] = count + claim
        count += max(found) + 1
    claim_of = _with_equal_answers_joined(said, claim_of)
    return Agreement(groups, claim_of, held_by(said, questions, claim_of))


def _with_equal_answers_joined(said: Sequence[Said], claim_of: Sequence[int]) -> list[int]:
    """The same words are the same claim, whatever the question left of them as its own."""
    first: dict[str, int] = {}
    pairs = [
        (first.setdefault(normalised(one.answer), claim), claim)
        for one, claim in zip(said, claim_of, strict=True)
        if len(one.own) >= 2
    ]
    roots = components(max(claim_of) + 1, pairs)
    numbering: dict[int, int] = {}
    return [numbering.setdefault(roots[claim], len(numbering)) for claim in claim_of]
