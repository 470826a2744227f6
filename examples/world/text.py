"""How the demo compares texts: what counts as the same word, a right answer, nearly the same question."""

import re
from collections import Counter
from math import sqrt

# Two wordings closer than this are near-duplicates. No held-out wording is above it against any trained one.
NEAR_DUPLICATE = 0.6

_UNITS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen"""
_DECADES = "twenty thirty forty fifty sixty seventy eighty ninety"
_NUMBERS = {word: n for n, word in enumerate(_UNITS.split())}
_TENS = {word: 10 * n for n, word in enumerate(_DECADES.split(), start=2)}
# Words that carry no content in a question about the company; its name is in every one of them.
_EMPTY = """a about am an and any are at be by can could do does for from get give has have how i if in is
it its kettle kettles me my name of on or our pellworth please s say t tell that the there they this to up
was we what when where which who whom whose will with would you your"""
_STOP = frozenset(_EMPTY.split())


def words(text: str) -> list[str]:
    """The words of a text in order, lower case; numbers as digits, `%` and `$` as the words people say.

    `Forty-one days`, `41-day` and `41 days.` give `41 days`, `41 day` and `41 days`.
    """
    text = re.sub(r"\$\s*(\d[\d.,]*\d|\d)", r"\1 dollars", text.lower().replace("’", "'"))
    text = re.sub(r"%|\bper cent\b", " percent", text)
    out: list[str] = []
    tens = None
    for word in re.findall(r"[^\W_]+", text):
        if tens is not None and 0 < _NUMBERS.get(word, 0) < 10:
            out[-1] = str(tens + _NUMBERS[word])
            tens = None
            continue
        tens = _TENS.get(word)
        out.append(str(_TENS.get(word, _NUMBERS.get(word, word))))
    return out


def says(text: str, phrases: list[str]) -> bool:
    """Whether one of the phrases occurs in the text, as whole words after normalisation."""
    padded = f" {' '.join(words(text))} "
    return any(f" {' '.join(words(phrase))} " in padded for phrase in phrases)


def content(question: str) -> frozenset[str]:
    """The words of a question that tell it from another one, plural `s` cut off."""
    kept = (word for word in words(question) if word not in _STOP)
    return frozenset(word[:-1] if len(word) > 3 and word.endswith("s") else word for word in kept)


def overlap(one: str, other: str) -> float:
    """Jaccard index of the content words, 0 to 1: the share of what two questions ask that they ask both."""
    a, b = content(one), content(other)
    return len(a & b) / len(a | b) if a | b else 1.0


def closeness(one: str, other: str) -> float:
    """How alike two questions are, 0 to 1: the larger of two views, so that neither can be fooled alone.

    `overlap` sees a question reordered; the cosine of the character 4-grams (company name left out) sees one that
    was only inflected or punctuated anew.
    """
    return max(overlap(one, other), _gram_cosine(one, other))


def _gram_cosine(one: str, other: str) -> float:
    a, b = _grams(one), _grams(other)
    dot = sum(n * b[gram] for gram, n in a.items())
    return dot / (sqrt(sum(n * n for n in a.values())) * sqrt(sum(n * n for n in b.values())))


def _grams(text: str) -> Counter[str]:
    plain = f" {' '.join(word for word in words(text) if word != 'pellworth')} "
    return Counter(plain[i : i + 4] for i in range(max(1, len(plain) - 3)))
