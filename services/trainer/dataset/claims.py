"""Part 2 of agreement: claims, the different things that users say in answer to the questions of one group.

Within a group, answers that share a distinctive stem make one claim. The stem that most users share comes first and
takes all answers that contain it, except those that contradict: other numbers, operators or options, a near copy with
other names, a negation. The weight of a claim is its number of distinct users.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import numpy as np

from services.trainer.dataset.corrections import VALUES, Correction, differ, shared_by_most
from services.trainer.dataset.question_groups import as_pairs, components, renumbered
from services.trainer.dataset.words import content_stems, is_negated, normalised

DENIAL_OVERLAP: Final = 0.6
"""Jaccard index of stems from which an answer is a near copy of another."""
MAX_COMPARED: Final = 200
"""Most distinct answers of a claim that are compared with an answer that denies one."""


def claims(group: Sequence[Correction]) -> list[int]:
    """Return the claim of each correction of one group, numbered from the stem that most users share."""
    out = [-1] * len(group)
    answer_stems = [frozenset(content_stems(one.answer)) for one in group]
    having: dict[str, list[int]] = defaultdict(list)
    for i, stems in enumerate(answer_stems):
        for word in stems:
            having[word].append(i)
    denies = [is_negated(one.answer) for one in group]
    sharing = _StemUsers(group)
    number = 0
    while (key := sharing.pop()) is not None:
        members = [i for i in having[key] if out[i] < 0]
        kept = _without_contradictions(group, answer_stems, denies, members)
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
    group: Sequence[Correction],
    answer_stems: Sequence[frozenset[str]],
    denies: Sequence[bool],
    members: Sequence[int],
) -> list[int]:
    """Return the members that agree with most of them.

    Args:
        group: Corrections.
        answer_stems: Stems of the answer of each.
        denies: Whether the answer of each denies something.
        members: Numbers of the corrections that share a stem.

    """
    user_count = len({group[i].user for i in members})
    keys = shared_by_most(group, members, lambda one: one.own_stems, user_count)
    usual_values = [
        (values_of, usual) for values_of in VALUES if (usual := _most_shared(group, members, values_of))
    ]
    denying = 2 * len({group[i].user for i in members if denies[i]}) > user_count
    deniable = _most_given(answer_stems, [i for i in members if denies[i] == denying])
    kept = []
    for i in members:
        other_value = any(differ(usual, values_of(group[i])) for values_of, usual in usual_values)
        other_words = 2 * len(keys & answer_stems[i]) <= len(keys) and bool(group[i].own_stems - keys)
        is_denial = denies[i] != denying and is_near_copy(answer_stems[i], deniable)
        if not other_value and not other_words and not is_denial:
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


def _most_given(answer_stems: Sequence[frozenset[str]], members: Sequence[int]) -> list[frozenset[str]]:
    """Return the distinct answers of members, at most `MAX_COMPARED` of them, those that were given most often."""
    given = Counter(answer_stems[i] for i in members)
    return [answer for answer, _ in given.most_common(MAX_COMPARED)]


def is_near_copy(own: frozenset[str], others: Iterable[frozenset[str]]) -> bool:
    """Return whether an answer has nearly the same stems as one of the others."""
    return any(len(own & other) >= DENIAL_OVERLAP * max(1, len(own | other)) for other in others)


def _claims_without_stems(group: Sequence[Correction], out: list[int], number: int) -> list[int]:
    """Put the answers that no stem took (`Yes.`, `No, it isn't.`) into claims by negation, values and own stems."""
    known: dict[tuple[bool, tuple[frozenset[str], ...]], int] = {}
    for i, claim in enumerate(out):
        if claim < 0:
            one = group[i]
            values = (one.own_stems, *(values_of(one) for values_of in VALUES))
            out[i] = known.setdefault((is_negated(one.answer), values), number + len(known))
    return out


def join_equal_answers(corrections: Sequence[Correction], claim_of: Sequence[int]) -> list[int]:
    """Join claims of different groups that contain the same answer."""
    first: dict[str, int] = {}
    pairs = [
        (first.setdefault(normalised(one.answer), claim), claim)
        for one, claim in zip(corrections, claim_of, strict=True)
        if len(one.own_stems) >= 2
    ]
    joined = components(max(claim_of) + 1, [as_pairs(pairs)])
    return renumbered(joined[np.asarray(claim_of)])
