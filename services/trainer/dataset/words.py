"""Words, numbers and negations of short texts: what similarity and agreement compare.

The stems are Snowball's; the rules for words, numbers and negation are the product's own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

import snowballstemmer

_UNITS: Final = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
_NUMBERS: Final = {word: n for n, word in enumerate(_UNITS)}
_TENS: Final = {
    word: n
    for n, word in zip(
        range(20, 100, 10), "twenty thirty forty fifty sixty seventy eighty ninety".split(), strict=True
    )
}
STOP_WORDS: Final = frozenset(
    "a about all also am an and any are as at be because been but by can could did do does doing done for from get "
    "give got had has have he her here herself him himself his how i if in into is it its itself just let like may me "
    "mean might more most must my myself no not now of off on once one only or other our ours out over own please s "
    "said say says she should so some such t tell than that the their them themselves then there these they this "
    "those through to too up us very was we were what when where which while who whom whose why will with would yes "
    "you your yours".split()
)
"""English words that carry no topic. Other languages are compared without such a list, which is less precise."""
_NEGATIONS: Final = frozenset(
    "no not never none nobody nothing neither nor without cannot isn aren wasn don doesn didn won".split()
)
_WORD: Final = re.compile(r"[^\W_]+", re.UNICODE)
_STEMMER: Final = snowballstemmer.stemmer("english")


def words(text: str) -> list[str]:
    """Return the words in order, in lower case, with numbers as digits: `Forty-one days` gives `41 days`."""
    plain = re.sub(r"\$\s*(\d[\d.,]*\d|\d)", r"\1 dollars", text.lower().replace("’", "'"))
    plain = re.sub(r"%|\bper cent\b", " percent", plain)
    out: list[str] = []
    tens: int | None = None
    for word in _WORD.findall(plain):
        if tens is not None and 0 < _NUMBERS.get(word, 0) < 10:
            out[-1] = str(tens + _NUMBERS[word])
            tens = None
            continue
        tens = _TENS.get(word)
        out.append(str(_TENS.get(word, _NUMBERS.get(word, word))))
    return out


@lru_cache(maxsize=65_536)
def stem(word: str) -> str:
    """Return the English Snowball stem of a word in lower case."""
    return str(_STEMMER.stemWord(word))


@lru_cache(maxsize=16_384)
def content_stems(text: str) -> tuple[str, ...]:
    """Return the stems of the words that carry the topic, in order."""
    return tuple(stem(word) for word in words(text) if word not in STOP_WORDS)


def normalised(text: str) -> str:
    """Return the words as one string. Texts with equal results count as the same text."""
    return " ".join(words(text))


def numbers(text: str) -> frozenset[str]:
    """Return the words that contain a digit."""
    return frozenset(word for word in words(text) if any(char.isdigit() for char in word))


def is_negated(text: str) -> bool:
    """Return whether the text has an odd number of negations: two cancel each other."""
    return sum(word in _NEGATIONS for word in words(text)) % 2 == 1


def frequent_question_stems(questions: Iterable[str]) -> frozenset[str]:
    """Return the stems that occur in two or more distinct wordings.

    People who ask do not know the answer, so an answer is about other words than these.
    """
    stems_of = {normalised(question): frozenset(content_stems(question)) for question in questions}
    counts = Counter(word for stems in stems_of.values() for word in stems)
    return frozenset(word for word, count in counts.items() if count > 1)


def spelling(text: str) -> str:
    """Return the text whose characters are compared: the content stems, or all words if there are only stop words."""
    return f" {' '.join(content_stems(text)) or normalised(text)} "
