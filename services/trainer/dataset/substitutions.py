"""A name, a number or an identifier in the place of another one: two questions about different subjects.

"chapter 3" and "chapter 4", "the iPhone 12" and "the iPhone 13", `parse_date()` and `load_row()`. Few questions are
evidence enough, so the rule is narrow:

- A filler is a run of names, numbers and identifiers. Two fillers are in the same place if the same word comes before
  or after both. Whoever adds a name to a question substitutes nothing.
- Names do not count if the questions have another filler in common ("Hi Jim, ... of Alabama" and "Hi Ann, ... of
  Alabama"), or if the fillers are spelt alike.
- A place does not count if most of its fillers come with the answer of another filler: then the answer does not depend
  on it.

A word is a name if most users write it as one, so nobody makes a name of a word by writing it with a capital letter.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from services.trainer.dataset.corrections import Correction
from services.trainer.dataset.similar_pairs import Integers, products
from services.trainer.dataset.similarity import Vectors
from services.trainer.dataset.words import content_stems, names

SPELT_ALIKE: Final = 0.5
"""Share of the 3-grams of the shorter filler from which two are two spellings of one name."""
_IDENTIFIER: Final = re.compile(r"\w*[^\W_]_\w+|[a-z]+[A-Z]\w*|\w+(?=\(\))")
_IDENTIFIER_HINT: Final = re.compile(r"_|\(\)|[a-z][A-Z]")
"""What every text with an identifier contains."""
_GRAM: Final = 3


class Filler(NamedTuple):
    """A run of names, numbers and identifiers, written without spaces, and the words around it."""

    text: str
    before: str
    after: str

    @property
    def is_numeric(self) -> bool:
        """Whether it has a number."""
        return any(map(str.isdigit, self.text))

    def places(self) -> list[str]:
        """Return the places where it is: after a word, before a word."""
        return [f"{self.before} ..."] * bool(self.before) + [f"... {self.after}"] * bool(self.after)


@dataclass(frozen=True, slots=True)
class Substitutions:
    """Fillers of the questions of all vectors, as (vectors, features) counts."""

    numeric_places: csr_matrix
    numeric: csr_matrix
    """Numeric fillers with their places."""
    named_places: csr_matrix
    named: csr_matrix
    """Other fillers with their places."""
    fillers: csr_matrix
    grams: csr_matrix
    """3-grams of fillers that are not numeric."""

    def between(self, one: Integers, other: Integers) -> NDArray[np.bool_]:
        """Return for each pair of vectors whether one question has another filler in a place of the other."""

        def common(features: csr_matrix) -> NDArray[np.float32]:
            return products(features, features, (one, other))

        of_number = common(self.numeric_places) > common(self.numeric)
        sizes = np.asarray(self.grams.sum(axis=1)).ravel()
        alike = common(self.grams) >= SPELT_ALIKE * np.minimum(sizes[one], sizes[other])
        of_name = (common(self.named_places) > common(self.named)) & (common(self.fillers) == 0) & ~alike
        found: NDArray[np.bool_] = of_number | of_name
        return found


def find_substitutions(
    corrections: Sequence[Correction], questions: Vectors, claim_of: Sequence[int]
) -> Substitutions:
    """Return the fillers of all questions. `claim_of` has the claim of each correction."""
    subjects = _names_and_numbers(corrections)
    texts = _first_texts(corrections, questions)
    fillers_of = [_fillers(content_stems(text), subjects) for text in texts]
    bare = _places_without_subject(fillers_of, questions.of.tolist(), claim_of)
    features: list[list[list[str]]] = [[], [], [], [], [], []]
    for fillers in fillers_of:
        row: list[list[str]] = [[], [], [], [], [], []]
        for filler in fillers:
            places = [place for place in filler.places() if place not in bare]
            first = 0 if filler.is_numeric else 2
            row[first] += places
            row[first + 1] += [f"{place} = {filler.text}" for place in places]
            row[4].append(filler.text)
            if not filler.is_numeric:
                row[5] += _grams(filler.text)
        for kind, values in zip(features, row, strict=True):
            kind.append(sorted(set(values)))
    return Substitutions(*map(_one_hot, features))


def _first_texts(corrections: Sequence[Correction], questions: Vectors) -> list[str]:
    """Return one question of each vector; all have the same content stems."""
    first = np.unique(questions.of, return_index=True)[1]
    return [corrections[i].question for i in first.tolist()]


def _names_and_numbers(corrections: Sequence[Correction]) -> frozenset[str]:
    """Return the stems of questions that have a digit, or that most of their users write as a name or identifier."""
    users: dict[str, set[str]] = defaultdict(set)
    naming: dict[str, set[str]] = defaultdict(set)
    askers: dict[str, set[str]] = defaultdict(set)
    for one in corrections:
        askers[one.question].add(one.user)
    for question, asking in askers.items():
        identifiers = _IDENTIFIER.findall(question) if _IDENTIFIER_HINT.search(question) else []
        special = names(question).union(content_stems(" ".join(identifiers)))
        for stem in set(content_stems(question)):
            users[stem] |= asking
            if stem in special or any(map(str.isdigit, stem)):
                naming[stem] |= asking
    return frozenset(stem for stem, having in naming.items() if 2 * len(having) > len(users[stem]))


def _fillers(stems: Sequence[str], subjects: frozenset[str]) -> list[Filler]:
    """Return the runs of stems that are among `subjects`, in order."""
    found = []
    start = 0
    while start < len(stems):
        end = start
        while end < len(stems) and stems[end] in subjects:
            end += 1
        if end > start:
            before = stems[start - 1] if start else ""
            after = stems[end] if end < len(stems) else ""
            found.append(Filler("".join(stems[start:end]), before, after))
        start = end + 1
    return found


def _places_without_subject(
    fillers_of: Sequence[Sequence[Filler]], vector_of: Sequence[int], claim_of: Sequence[int]
) -> frozenset[str]:
    """Return the places of which most fillers come with the answer of another filler."""
    claims: dict[str, dict[tuple[str, int], None]] = defaultdict(dict)
    for vector, claim in dict.fromkeys(zip(vector_of, claim_of, strict=True)):
        for filler in fillers_of[vector]:
            for place in filler.places():
                claims[place][filler.text, claim] = None
    bare = []
    for place, pairs in claims.items():
        fillers_with: dict[int, int] = defaultdict(int)
        for _, claim in pairs:
            fillers_with[claim] += 1
        shared = {text for text, claim in pairs if fillers_with[claim] > 1}
        if 2 * len(shared) > len({text for text, _ in pairs}):
            bare.append(place)
    return frozenset(bare)


def _grams(text: str) -> list[str]:
    marked = f"^{text}$"
    return [marked[i : i + _GRAM] for i in range(len(marked) - _GRAM + 1)]


def _one_hot(features: Sequence[Sequence[str]]) -> csr_matrix:
    """Return (rows, distinct features) ones."""
    numbers: dict[str, int] = {}
    columns = [numbers.setdefault(feature, len(numbers)) for row in features for feature in row]
    starts = np.concatenate(([0], np.cumsum([len(row) for row in features])))
    shape = (len(features), max(1, len(numbers)))
    return csr_matrix((np.ones(len(columns), dtype=np.float32), columns, starts), shape=shape)
