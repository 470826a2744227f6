"""Text comparison for the demo: normalised words, phrases in answers, similarity of questions."""

import re
from collections import Counter
from math import sqrt

# Wordings with a higher similarity are near-duplicates. No held-out wording is one of any trained wording.
NEAR_DUPLICATE_SIMILARITY = 0.6

_UNITS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen"""
_DECADES = "twenty thirty forty fifty sixty seventy eighty ninety"
_NUMBERS = {word: n for n, word in enumerate(_UNITS.split())}
_TENS = {word: 10 * n for n, word in enumerate(_DECADES.split(), start=2)}
# Words without content in a question about the company, including its name, which every question contains.
_EMPTY = """a about am an and any are at be by can could do does for from get give has have how i if in is
it its kettle kettles me my name of on or our pellworth please s say t tell that the there they this to up
was we what when where which who whom whose will with would you your"""
_STOP = frozenset(_EMPTY.split())


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, with numbers as digits and `%` and `$` as words.

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


def contains_phrase(text: str, phrases: list[str]) -> bool:
    """Return whether the text contains one of the phrases, as whole words after normalisation."""
    padded = f" {' '.join(words(text))} "
    return any(f" {' '.join(words(phrase))} " in padded for phrase in phrases)


def content(question: str) -> frozenset[str]:
    """Return the content words of a question, without plural `s`."""
    kept = (word for word in words(question) if word not in _STOP)
    return frozenset(word[:-1] if len(word) > 3 and word.endswith("s") else word for word in kept)


def overlap(first: str, second: str) -> float:
    """Return the Jaccard index of two questions' content words, 0 to 1."""
    a, b = content(first), content(second)
    return len(a & b) / len(a | b) if a | b else 1.0


def similarity(first: str, second: str) -> float:
    """Return the similarity of two questions, 0 to 1.

    The maximum of two measures: `overlap` detects reordered words; the cosine of the character 4-grams (without the
    company name) detects changed inflection and punctuation.
    """
    return max(overlap(first, second), _gram_cosine(first, second))


def _gram_cosine(first: str, second: str) -> float:
    a, b = _grams(first), _grams(second)
    dot = sum(n * b[gram] for gram, n in a.items())
    return dot / (sqrt(sum(n * n for n in a.values())) * sqrt(sum(n * n for n in b.values())))


def _grams(text: str) -> Counter[str]:
    plain = f" {' '.join(word for word in words(text) if word != 'pellworth')} "
    return Counter(plain[i : i + 4] for i in range(max(1, len(plain) - 3)))
