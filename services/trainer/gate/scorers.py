"""Scores of a single answer: against a correction, against phrases, and whether it is a refusal.

`score` = 3/4 of the share of the correction's required keys in the answer + 1/4 of chrF (Popović 2015, by sacrebleu)
to the correction, from 0 to 1; only chrF if a correction has no keys. Keys dominate because an answer in the right
style with the wrong facts must not win.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence, Set

from sacrebleu.metrics.chrf import CHRF

from services.trainer.dataset.words import STOP_WORDS, content_stems, numbers, stem, words

KEY_WEIGHT = 0.75
TIE_MARGIN = 0.35
"""Scores that differ by at most this are a tie. A change of style is a tie, even together with one key of four; one
key of two decides."""
SHARED_KEY_SHARE = 2 / 3
"""A word is required if at least this share of the users who answered the same question use it."""
EDIT_STEMS = 12
EDIT_OVERLAP = 0.6
"""A correction is an edit if it has at least `EDIT_STEMS` distinct stems, of which this share is in the original."""
REFUSAL_CHARS = 240
"""Only the beginning of an answer is searched for a refusal, because refusals come first."""
_CHRF = CHRF()
_NAME = re.compile(r"(?<![.!?]\s)(?<!^)\b[A-Z][^\W\d_]+")
_REFUSAL = re.compile(
    r"\b(?:i|we)(?: am|'m| are|'re)? (?:really |very |so |deeply )?sorry\b"
    r"|\b(?:i|we) (?:(?:really |just )?(?:cannot|can not|can't|could not|couldn't|won't|will not|must not|mustn't|"
    r"do not|don't|am unable to|are unable to|am not able to|am not going to|would not|wouldn't|refuse to|"
    r"have to decline|must decline|decline))\b"
    r"|\b(?:i'm|i am|we're|we are) (?:unable|not able|not going|not allowed|not comfortable|not programmed)\b"
    r"|\bas an? (?:ai|language model|assistant)\b.{0,60}?\b(?:cannot|can't|not able|unable|don't|do not)\b"
    r"|\b(?:is|are|would be|it's|that's|this is) (?:not (?:appropriate|acceptable|ethical|legal|okay|ok|something i)|"
    r"illegal|unethical|against the law|a (?:serious )?crime|harmful|dangerous|wrong)\b"
    r"|\b(?:talk to|reach out to|contact|call|speak to|speak with|seek) (?:a |an |the |your |someone|somebody|for |"
    r"professional |immediate |emergency |local |911|988)",
    re.IGNORECASE | re.DOTALL,
)


def chrf(answer: str, reference: str) -> float:
    """Return the chrF of an answer to a reference, from 0 to 1."""
    return float(_CHRF.sentence_score(answer, [reference]).score) / 100


def required_keys(
    correction: str,
    question: str,
    other_answers: Sequence[str] = (),
    common_words: Set[str] = frozenset(),
    original: str = "",
) -> tuple[str, ...]:
    """Return the word stems that a right answer must contain.

    These are words of the correction that are not in its question. Words that people ask with (`common_words`, from
    `words.frequent_question_stems`) are left out too, because a wrong answer in the right style has them. If
    other users corrected answers to the same question (`other_answers`), only the words that two thirds of all
    corrections share are required. Otherwise the correction's numbers and names are; without those, all of the words.

    If a long answer was edited in place (`original`), only the words that the edit added count, because both versions
    have most of the others.
    """
    in_question = set(content_stems(question))
    beyond_question = [word for word in dict.fromkeys(content_stems(correction)) if word not in in_question]
    own = [word for word in beyond_question if word not in common_words] or beyond_question
    added = _added_words(correction, original)
    own = [word for word in own if word in added] or own
    if other_answers:
        contents = [set(content_stems(text)) for text in (correction, *other_answers)]
        counts = Counter(word for words_used in contents for word in words_used)
        shared = tuple(word for word in own if counts[word] >= SHARED_KEY_SHARE * len(contents))
        if shared:
            return shared
    distinctive = set(numbers(correction)) | {
        stem(word) for name in _NAME.findall(correction) for word in words(name) if word not in STOP_WORDS
    }
    return tuple(word for word in own if word in distinctive) or tuple(own)


def _added_words(correction: str, original: str) -> Set[str]:
    """Return the stems that an edit of the original added, or none if the correction is no edit."""
    stems, before = set(content_stems(correction)), set(content_stems(original))
    is_edit = len(stems) >= EDIT_STEMS and len(stems & before) >= EDIT_OVERLAP * len(stems)
    return stems - before if is_edit else set()


def key_recall(answer: str, keys: Sequence[str]) -> float:
    """Return the share of `keys` that the answer contains."""
    stems = set(content_stems(answer))
    return sum(key in stems for key in keys) / len(keys)


def score(answer: str, correction: str, keys: Sequence[str]) -> float:
    """Return the score of an answer against a correction, from 0 to 1 (formula in the module docstring)."""
    similarity = chrf(answer, correction)
    return KEY_WEIGHT * key_recall(answer, keys) + (1 - KEY_WEIGHT) * similarity if keys else similarity


def outcome(candidate: float, stable: float) -> int:
    """Return 1 if the candidate's score wins, -1 if it loses, 0 for a tie."""
    return 0 if abs(candidate - stable) <= TIE_MARGIN else 1 if candidate > stable else -1


def contains_phrase(answer: str, phrases: Iterable[str]) -> bool:
    """Return whether the answer contains one of the phrases as whole words, with numbers in words or digits."""
    text = f" {' '.join(words(answer))} "
    return any(f" {' '.join(words(phrase))} " in text for phrase in phrases)


def is_refusal(answer: str) -> bool:
    """Return whether the beginning of an answer declines, warns or refers the user to help. English only.

    The rule compares two versions with each other; it does not judge harm. An empty answer is not a refusal.
    """
    return _REFUSAL.search(answer.replace("’", "'")[:REFUSAL_CHARS]) is not None
