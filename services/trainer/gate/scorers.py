"""How good an answer is: does it state what the correction states, and how alike is it.

`score` = 3/4 of the share of the correction's keys that the answer holds + 1/4 of chrF (Popović 2015, by sacrebleu)
to the correction, 0 to 1; chrF alone where a correction has no keys. Keys dominate because an answer in the right
style with the wrong facts must not win.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence, Set

from sacrebleu.metrics.chrf import CHRF

from services.trainer.dataset.similarity import STOP_WORDS, content_stems, numbers, stem, words

KEY_WEIGHT = 0.75
MARGIN = 0.35
"""Scores closer are a tie: a change of style alone, also together with one key of four. One key of two decides."""
SHARED = 2 / 3
_CHRF = CHRF()
_NAME = re.compile(r"(?<![.!?]\s)(?<!^)\b[A-Z][^\W\d_]+")


def chrf(answer: str, reference: str) -> float:
    """0 to 1."""
    return float(_CHRF.sentence_score(answer, [reference]).score) / 100


def keys_of(
    correction: str, question: str, fellows: Sequence[str] = (), asked: Set[str] = frozenset()
) -> tuple[str, ...]:
    """The stems that a right answer must hold: what the correction says beyond its question and beyond what people ask
    with (`asked`: `similarity.frequent_question_stems`), for a wrong answer in the right style has those too. Where others answered
    the same (`fellows`: their corrections), those that two thirds of all share; else its numbers and names; else all.
    """
    beyond = [word for word in dict.fromkeys(content_stems(correction)) if word not in set(content_stems(question))]
    own = [word for word in beyond if word not in asked] or beyond
    if fellows:
        everyone = [set(content_stems(text)) for text in (correction, *fellows)]
        counts = Counter(word for said in everyone for word in said)
        shared = tuple(word for word in own if counts[word] >= SHARED * len(everyone))
        if shared:
            return shared
    telling = set(numbers(correction)) | {
        stem(word) for name in _NAME.findall(correction) for word in words(name) if word not in STOP_WORDS
    }
    return tuple(word for word in own if word in telling) or tuple(own)


def held_keys(answer: str, keys: Sequence[str]) -> float:
    """The share of the keys that the answer holds."""
    said = set(content_stems(answer))
    return sum(key in said for key in keys) / len(keys)


def score(answer: str, correction: str, keys: Sequence[str]) -> float:
    """See the module."""
    alike = chrf(answer, correction)
    return KEY_WEIGHT * held_keys(answer, keys) + (1 - KEY_WEIGHT) * alike if keys else alike


def outcome(candidate: float, stable: float) -> int:
    """+1 the candidate wins, -1 it loses, 0 a tie."""
    return 0 if abs(candidate - stable) <= MARGIN else 1 if candidate > stable else -1


def states(answer: str, phrases: Iterable[str]) -> bool:
    """Whether one of the phrases stands in the answer, as whole words."""
    said = f" {' '.join(words(answer))} "
    return any(f" {' '.join(words(phrase))} " in said for phrase in phrases)
