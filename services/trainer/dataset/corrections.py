"""Corrections as agreement compares them, and what answers can contradict each other in."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Final

from services.trainer.dataset.words import (
    content_stems,
    frequent_question_stems,
    names,
    numbers,
    operators,
)

KEY_SHARE: Final = 2 / 3
"""A stem that this share of a claim's users wrote is one of the claim's keys."""
_NOTHING: Final[frozenset[str]] = frozenset()
"""Shared, because most answers have none of most values."""
_OPTION: Final = re.compile(r"(?<![^\s`'\"(\[])--?[A-Za-z][\w-]*")


@dataclass(frozen=True)
class Correction:
    """One user's answer to one question. What it says is computed once, although claims are compared many times."""

    user: str
    question: str
    answer: str
    own_stems: frozenset[str]
    """Stems of the answer that are neither in its question nor in two wordings of any question. People who ask do not
    know the answer, so the answer is about these. Numbers that other questions contain are among them, because a small
    number is in many texts; operators are not, because most lines of code have some."""
    at_ms: int = 0
    """When the user gave it, in ms since 1970."""

    @cached_property
    def own_numbers(self) -> frozenset[str]:
        """The words with a digit of the answer that are not in the question."""
        return (numbers(self.answer) - numbers(self.question)) or _NOTHING

    @cached_property
    def own_amounts(self) -> frozenset[str]:
        """The own numbers without letters. `gas_m3 = 2.9` and `gas_m3 = 2.2` have `m3` in common, and differ."""
        found = frozenset(number for number in self.own_numbers if not any(map(str.isalpha, number)))
        return self.own_numbers if found == self.own_numbers else found

    @cached_property
    def own_operators(self) -> frozenset[str]:
        """The operators of the answer that are not in the question, such as `<=` and the `++` of `C++`."""
        found = operators(self.answer)
        return (found and found - operators(self.question)) or _NOTHING

    @cached_property
    def own_options(self) -> frozenset[str]:
        """The command-line options of the answer that are not in the question, such as `--force`."""
        found = _OPTION.findall(self.answer)
        return frozenset(found).difference(_OPTION.findall(self.question)) if found else _NOTHING

    @cached_property
    def own_names(self) -> frozenset[str]:
        """The names among the own stems."""
        return (names(self.answer) & self.own_stems) or _NOTHING


VALUES: Final[tuple[Callable[[Correction], frozenset[str]], ...]] = (
    attrgetter("own_numbers"),
    attrgetter("own_amounts"),
    attrgetter("own_operators"),
    attrgetter("own_options"),
    attrgetter("own_names"),
)
"""What answers can contradict each other in, if both have some."""


def corrections_of(rows: Sequence[tuple[str, str, str]], at_ms: Sequence[int] = ()) -> list[Correction]:
    """Return the corrections given as (user, question, answer), with the times at which they were given, if known."""
    frequent = frequent_question_stems(question for _, question, _ in rows)
    common = frozenset(word for word in frequent if not any(map(str.isdigit, word)))
    return [
        Correction(
            user,
            question,
            answer,
            frozenset(content_stems(answer))
            - frozenset(content_stems(question))
            - operators(answer)
            - common,
            at,
        )
        for (user, question, answer), at in zip(rows, at_ms or [0] * len(rows), strict=True)
    ]


def shared_by_most(
    corrections: Sequence[Correction],
    members: Sequence[int],
    terms: Callable[[Correction], frozenset[str]],
    user_count: int,
) -> frozenset[str]:
    """Return the terms that at least `KEY_SHARE` of the users of some corrections wrote."""
    users: dict[str, set[str]] = defaultdict(set)
    for i in members:
        for term in terms(corrections[i]):
            users[term].add(corrections[i].user)
    return frozenset(term for term, having in users.items() if len(having) >= KEY_SHARE * user_count)


def differ(one: frozenset[str], other: frozenset[str]) -> bool:
    """Return whether both sets have values, and none in common."""
    return bool(one) and bool(other) and not one & other


def indices_by(labels: Iterable[int]) -> list[list[int]]:
    """Return the positions of each label 0, 1, ..."""
    positions: dict[int, list[int]] = defaultdict(list)
    for i, label in enumerate(labels):
        positions[label].append(i)
    return [positions[label] for label in range(len(positions))]
