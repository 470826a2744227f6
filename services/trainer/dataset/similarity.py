"""How alike two texts are, by words and by spelling alone: deterministic, no model, no language beyond a stop list.

Lexical on purpose. What decides about people's votes must be explainable to them, and must not be fooled by what the
model under training believes.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

Matrix = npt.NDArray[np.float32]

NEAR_DUPLICATE = 0.6
"""Wordings at least this close are one wording: what was trained on one of them is no news in the other."""

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
_NUMBERS = {word: n for n, word in enumerate(_UNITS)}
_TENS = {
    word: n
    for n, word in zip(
        range(20, 100, 10), "twenty thirty forty fifty sixty seventy eighty ninety".split(), strict=True
    )
}
STOP = frozenset(
    "a about all also am an and any are as at be because been but by can could did do does doing done for from get "
    "give got had has have he her here herself him himself his how i if in into is it its itself just let like may me "
    "mean might more most must my myself no not now of off on once one only or other our ours out over own please s "
    "said say says she should so some such t tell than that the their them themselves then there these they this "
    "those through to too up us very was we were what when where which while who whom whose why will with would yes "
    "you your yours".split()
)
"""Words that say nothing about the matter. English; other languages lose nothing but sharpness."""
NEGATION = frozenset(
    "no not never none nobody nothing neither nor without cannot isn aren wasn don doesn didn won".split()
)
_WORD = re.compile(r"[^\W_]+", re.UNICODE)


def words(text: str) -> list[str]:
    """The words in order, lower case, numbers as digits: `Forty-one days` gives `41 days`."""
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


def stem(word: str) -> str:
    """Cuts the endings that change no meaning here: plural, past, present participle."""
    for ending in ("ings", "ing", "ied", "ies", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word[: -len(ending)]
    return word


@lru_cache(maxsize=16_384)
def content(text: str) -> tuple[str, ...]:
    """The stems that carry the matter of a text."""
    return tuple(stem(word) for word in words(text) if word not in STOP)


def normalised(text: str) -> str:
    """Two texts of the same words are the same text."""
    return " ".join(words(text))


def numbers(text: str) -> frozenset[str]:
    return frozenset(word for word in words(text) if any(letter.isdigit() for letter in word))


def negated(text: str) -> bool:
    """Whether the text denies something; an even number of denials counts as none."""
    return sum(word in NEGATION for word in words(text)) % 2 == 1


@lru_cache(maxsize=16_384)
def grams(text: str, n: int = 4) -> Counter[str]:
    """How often each run of n letters occurs in the content words. Shared: not to be changed."""
    plain = f" {' '.join(content(text))} "
    return Counter(plain[i : i + n] for i in range(max(1, len(plain) - n + 1)))


def weighted(documents: Sequence[Counter[str]]) -> csr_matrix:
    """TF-IDF rows of length one. idf = ln(1 + n / df): a term in every document still counts a little."""
    df = Counter(term for document in documents for term in document)
    index = {term: i for i, term in enumerate(sorted(df))}
    idf = {term: math.log(1 + len(documents) / count) for term, count in df.items()}
    rows, columns, values = [], [], []
    for row, document in enumerate(documents):
        terms = {term: (1 + math.log(count)) * idf[term] for term, count in document.items()}
        norm = math.sqrt(sum(value * value for value in terms.values())) or 1.0
        for term in sorted(terms):
            rows.append(row)
            columns.append(index[term])
            values.append(terms[term] / norm)
    return csr_matrix((values, (rows, columns)), shape=(len(documents), max(1, len(index))), dtype=np.float32)


def alike(texts: Sequence[str]) -> Matrix:
    """(n, n) closeness of questions: the mean of the TF-IDF cosines of content words and of character 4-grams.

    Words see a question reordered, spelling sees one inflected anew; a text that is all stop words is like none.
    """
    by_word = weighted([Counter(content(text)) for text in texts])
    by_gram = weighted([grams(text) for text in texts])
    mean = ((by_word @ by_word.T) + (by_gram @ by_gram.T)).toarray() / 2
    return np.asarray(mean, dtype=np.float32)


def closeness(one: str, other: str) -> float:
    """0 to 1, of two wordings alone: the larger of Jaccard of content words and cosine of 4-grams, so that neither view
    can be fooled alone. Compare with `NEAR_DUPLICATE`."""
    a, b = frozenset(content(one)), frozenset(content(other))
    jaccard = len(a & b) / len(a | b) if a | b else 1.0
    return max(jaccard, _cosine(grams(one), grams(other)))


def _cosine(a: Counter[str], b: Counter[str]) -> float:
    dot = sum(count * b[gram] for gram, count in a.items())
    return dot / math.sqrt(sum(n * n for n in a.values()) * sum(n * n for n in b.values()))


def asked_words(questions: Iterable[str]) -> frozenset[str]:
    """Stems that stand in two or more wordings. Who asks does not know the answer: it is about other words."""
    wordings = {normalised(question): frozenset(content(question)) for question in questions}
    counts = Counter(word for said in wordings.values() for word in said)
    return frozenset(word for word, count in counts.items() if count > 1)


def near_duplicates(candidates: Sequence[str], known: Sequence[str]) -> list[bool]:
    """For each candidate, whether anything known is a near-duplicate of it."""
    distinct = sorted(set(known))
    exact = {normalised(text) for text in distinct}
    return [
        normalised(text) in exact or any(closeness(text, other) >= NEAR_DUPLICATE for other in distinct)
        for text in candidates
    ]
