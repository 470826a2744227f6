"""Scores of a single answer: against a correction, a liked answer or phrases.

**Corrections** (`Rubric`): 1 is an answer like the correction, 0 one like the original that the user corrected.

- If the correction is an edit of the original, only what it changed counts (`text_edits.py`).
- Otherwise the raw score is 3/4 of the share of the correction's required keys in the answer + 1/4 of chrF (Popović
  2015, by sacrebleu) to the correction, and the original's own raw score is the zero point. Keys dominate because an
  answer in the right style with the wrong facts must not win.

**Liked answers** (`LikedFacts`): whether an answer still has the facts of the one that was liked.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from functools import cached_property

from sacrebleu.metrics.chrf import CHRF

from services.trainer.dataset.open_questions import FREE_TEXT_STEMS
from services.trainer.dataset.words import (
    STOP_WORDS,
    content_stems,
    is_open_request,
    names,
    numbers,
    stem,
    words,
)
from services.trainer.gate.text_edits import Edit, find_edit

KEY_WEIGHT = 0.75
TIE_MARGIN = 0.35
"""Scores that differ by at most this are a tie. A change of style is a tie, even together with one key of four; one
key of two decides."""
SHARED_KEY_SHARE = 2 / 3
"""A word is required if at least this share of the users who answered the same question use it."""
SAID_SHARE = 2 / 3
"""An answer says what was liked if it has this share of its facts."""
_CHRF = CHRF()
_NAME = re.compile(r"(?<![.!?]\s)(?<!^)\b[A-Z][^\W\d_]+")


def chrf(answer: str, reference: str) -> float:
    """Return the chrF of an answer to a reference, from 0 to 1."""
    return float(_CHRF.sentence_score(answer, [reference]).score) / 100


def required_keys(
    correction: str,
    question: str,
    other_answers: Sequence[str] = (),
    common_words: Set[str] = frozenset(),
) -> tuple[str, ...]:
    """Return the word stems that a right answer must contain.

    These are words of the correction that are not in its question. Words that people ask with (`common_words`, from
    `words.frequent_question_stems`) are left out too, because a wrong answer in the right style has them. If
    other users corrected answers to the same question (`other_answers`), only the words that two thirds of all
    corrections share are required. Otherwise the correction's numbers and names are; without those, all of the words.
    """
    own = _own_words(correction, question, common_words)
    shared = tuple(word for word in own if word in _shared_words((correction, *other_answers)))
    if other_answers and shared:
        return shared
    distinctive = set(numbers(correction)) | {
        stem(word) for name in _NAME.findall(correction) for word in words(name) if word not in STOP_WORDS
    }
    return tuple(word for word in own if word in distinctive) or tuple(own)


def _own_words(answer: str, question: str, common_words: Set[str]) -> list[str]:
    in_question = set(content_stems(question))
    beyond_question = [word for word in dict.fromkeys(content_stems(answer)) if word not in in_question]
    return [word for word in beyond_question if word not in common_words] or beyond_question


def _shared_words(answers: Sequence[str]) -> Set[str]:
    """Return the stems that `SHARED_KEY_SHARE` of the answers have."""
    counts = Counter(word for answer in answers for word in set(content_stems(answer)))
    return {word for word, count in counts.items() if count >= SHARED_KEY_SHARE * len(answers)}


def key_recall(answer: str, keys: Sequence[str]) -> float:
    """Return the share of `keys` that the answer contains."""
    stems = set(content_stems(answer))
    return sum(key in stems for key in keys) / len(keys)


def score(answer: str, correction: str, keys: Sequence[str]) -> float:
    """Return the raw score of an answer against a text, from 0 to 1 (formula in the module docstring)."""
    similarity = chrf(answer, correction)
    return KEY_WEIGHT * key_recall(answer, keys) + (1 - KEY_WEIGHT) * similarity if keys else similarity


@dataclass(frozen=True)
class Rubric:
    """How answers to the question of a correction are scored.

    Attributes:
        correction: The user's answer.
        original: The answer that the user corrected; empty if there is none.
        keys: Stems that a right answer must have, if the correction is no edit.
        edit: What the correction changed, if it is an edit.
        alternatives: Rubrics of other good answers. An answer is as good as the best of them says.
    """

    correction: str
    original: str = ""
    keys: tuple[str, ...] = ()
    edit: Edit | None = None
    alternatives: tuple[Rubric, ...] = ()

    def score(self, answer: str) -> float:
        """Return the score of an answer: 1 like a good answer, 0 like the original, below 0 worse than that."""
        return max(self._own_score(answer), *(one.score(answer) for one in self.alternatives), -1.0)

    def facts(self, answer: str) -> float | None:
        """Return which share of what the correction says or added is in the answer; None if it has no such words."""
        if self.edit is not None:
            return self.edit.added_share(answer)
        return key_recall(answer, self.keys) if self.keys else None

    @property
    def labels(self) -> tuple[str, ...]:
        """What is looked for, for people."""
        return self.keys if self.edit is None else self.edit.labels()

    def _own_score(self, answer: str) -> float:
        if self.edit is not None:
            return self.edit.score(answer)
        raw = score(answer, self.correction, self.keys)
        return (raw - self._zero) / (1 - self._zero)

    @cached_property
    def _zero(self) -> float:
        zero = score(self.original, self.correction, self.keys) if self.original.strip() else 0.0
        return zero if zero < 1 else 0.0


def build_rubric(
    correction: str,
    question: str,
    *,
    original: str = "",
    other_answers: Sequence[str] = (),
    alternatives: Sequence[str] = (),
    common_words: Set[str] = frozenset(),
) -> Rubric:
    """Return the rubric of a correction.

    Args:
        correction: The user's answer.
        question: The question that it answers.
        original: The answer that the user corrected.
        other_answers: Answers of other users who said the same in their words. They show which words matter.
        alternatives: Answers of other users that are good as well, and say something else.
        common_words: Stems that people ask with.
    """
    others = [
        build_rubric(text, question, original=original, common_words=common_words) for text in alternatives
    ]
    edit = find_edit(original, correction, common_words | set(content_stems(question)))
    if edit is None:
        keys = required_keys(correction, question, other_answers, common_words)
        return Rubric(correction, original, keys, None, tuple(others))
    if other_answers:
        edit = edit.restricted_to(_shared_words((correction, *other_answers)))
    return Rubric(correction, original, (), edit, tuple(others))


def liked_facts(answer: str, question: str, common_words: Set[str] = frozenset()) -> tuple[str, ...]:
    """Return the stems by which to check whether another answer says what a liked one says; none for an open answer.

    These are its numbers and names beyond the question, or all of its words if they are few. An open request, such as
    for a poem, has no facts: another answer may be as good.
    """
    if is_open_request(question):
        return ()
    own = _own_words(answer, question, common_words)
    distinctive = numbers(answer) | names(answer)
    facts = tuple(word for word in own if word in distinctive)
    return facts or (tuple(own) if len(own) < FREE_TEXT_STEMS else ())


def liked_outcome(candidate: float, stable: float) -> int:
    """Return -1 if stable still says what was liked and the candidate does not, 1 for the opposite, else 0.

    Args:
        candidate: Share of the facts in the candidate's answer.
        stable: Share of the facts in the stable version's answer.
    """
    return outcome(candidate, stable) if max(candidate, stable) >= SAID_SHARE else 0


def outcome(candidate: float, stable: float) -> int:
    """Return 1 if the candidate's score wins, -1 if it loses, 0 for a tie."""
    return 0 if abs(candidate - stable) <= TIE_MARGIN else 1 if candidate > stable else -1


def contains_phrase(answer: str, phrases: Iterable[str]) -> bool:
    """Return whether the answer contains one of the phrases as whole words, with numbers in words or digits."""
    text = f" {' '.join(words(answer))} "
    return any(f" {' '.join(words(phrase))} " in text for phrase in phrases)
