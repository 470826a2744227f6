"""Questions with several good answers: which claims about one question may train side by side.

"Write a short greeting" has as many good answers as people. Agreement asks for one answer only where answers make a
claim that can be checked and contradict each other in it: other numbers, other names, a denial, another value in the
same sentence. Two claims that do not contradict each other in this way stand side by side in two cases:

- Every question of both is an open request (`words.is_open_request`). Then even names and numbers may differ ("Suggest
  a name for a cat"), unless the answers are otherwise the same sentence, or more than half of the users agree.
  Both sides must have asked openly, so nobody can take a fact out of the vote by asking for it in another form.
- Each was given by one user, and either both are free text (`FREE_TEXT_STEMS`), or three or more users gave as many
  answers, of which no two agree. Once two users agree, the question has an answer, and all others are rivals of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from services.trainer.dataset.words import content_stems, is_negated, is_open_request, names, numbers, words

FREE_TEXT_STEMS: Final = 8
"""Distinct stems, beyond those of its question, from which an answer is free text and not a value."""
DISPERSED_USERS: Final = 3
COMPARED: Final = 32
"""Answers of a claim that are compared with those of another, so that claims of many answers stay comparable."""
MAX_COMPARED: Final = 20
"""Distinct answers of a claim that are compared one by one."""
SAME_SENTENCE: Final = 0.5
"""Jaccard index of words from which two answers are one sentence with another value."""


@dataclass(frozen=True)
class Claim:
    """Corrections that say the same: (question, answer) of each, and the number of users who gave them."""

    given: Sequence[tuple[str, str]]
    users: int

    @cached_property
    def is_requested_openly(self) -> bool:
        """Whether every question of the claim is an open request."""
        return all(is_open_request(question) for question, _ in self.given)

    @cached_property
    def wordings(self) -> list[frozenset[str]]:
        """Words of the first `COMPARED` distinct answers."""
        return [frozenset(words(answer)) for answer in self.answers[:COMPARED]]

    @cached_property
    def answers(self) -> list[str]:
        """Distinct answers, in order."""
        return list(dict.fromkeys(answer for _, answer in self.given))

    @cached_property
    def numbers(self) -> frozenset[str]:
        """Numbers of the answers that are not in their questions."""
        return frozenset().union(*(numbers(answer) - numbers(question) for question, answer in self.given))

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of the answers that are not in their questions."""
        return frozenset().union(*(names(answer) - {*content_stems(asked)} for asked, answer in self.given))

    @cached_property
    def is_free_text(self) -> bool:
        """Whether each answer has many words of its own."""
        return all(
            len({*content_stems(answer)} - {*content_stems(question)}) >= FREE_TEXT_STEMS
            for question, answer in self.given
        )


def stand_side_by_side(one: Claim, other: Claim, asked_by: int, *, agreed: bool) -> bool:
    """Return whether two claims about one question may both train.

    Args:
        one: A claim.
        other: Another claim.
        asked_by: Number of users who answered the question.
        agreed: Whether any two of them agree.

    """
    if one.is_requested_openly and other.is_requested_openly:
        decided = 2 * max(one.users, other.users) > max(asked_by, 2)
        return not (_differ_in_values(one, other) and (decided or _share_a_sentence(one, other)))
    if one.users > 1 or other.users > 1:
        return False
    dispersed = asked_by >= DISPERSED_USERS and not agreed
    if not dispersed and not (one.is_free_text and other.is_free_text):
        return False
    return not _differ_in_values(one, other) and not _share_a_sentence(one, other)


def _differ_in_values(one: Claim, other: Claim) -> bool:
    pairs = ((one.numbers, other.numbers), (one.names, other.names))
    return any(a and b and not a & b for a, b in pairs) or _denies(one, other)


def _denies(one: Claim, other: Claim) -> bool:
    denied = {is_negated(answer) for answer in one.answers[:MAX_COMPARED]}
    return _share_a_sentence(one, other) and denied.isdisjoint(map(is_negated, other.answers[:MAX_COMPARED]))


def _share_a_sentence(one: Claim, other: Claim) -> bool:
    """Return whether an answer of each has most words in common, so that only a value differs."""
    return any(
        len(a & b) >= SAME_SENTENCE * len(a | b)
        for a in one.wordings
        for b in other.wordings
        if a and b and a != b
    )
