"""Context of a question that changes nothing about its answer: stories, greetings, explanations.

"This morning my daughter and I let a balloon go. Which line opens the vent?" asks for the line only. But
in "I bought a kettle. How long is the warranty?" the first sentence names the subject. Which of the two it is shows in
the answers: if users ask the same sentence in different contexts and still agree, the contexts did not matter.

- **A word is dispensable** if most users who wrote it agree with someone who asked the same sentence without it, and
  about at least `LEAST_CLAIMS` claims. A sentence of such words is a story.
- **A sentence stands alone** if most of its users agree with someone whose context shares nothing with theirs. Then all
  context of it is a story, unless users who agree on another answer have context in common.

Sentences that ask are those with a question mark and open requests. If there are none, it is the sentence whose users
agree most, and otherwise the last one.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from scipy.sparse import csr_matrix

from services.trainer.dataset.corrections import Correction
from services.trainer.dataset.similar_pairs import Matrix
from services.trainer.dataset.similarity import Vectors
from services.trainer.dataset.words import content_stems, is_open_request

LEAST_CLAIMS: Final = 3
"""Claims about which a word must have been dispensable."""
LEAST_STEMS: Final = 2
"""Distinct content stems that a sentence needs to be taken for a question without its context."""
COMPARED: Final = 64
"""Corrections of other users with which each correction is compared."""
NEIGHBOURS: Final = 32
"""Vectors before and after each one, in order, that become its equals if more questions are equal."""
_SENTENCE: Final = re.compile(r".+?(?:[.!?…]+(?=\s|$)|[。！？؟।]+|\n|$)", re.DOTALL)
_QUESTION_MARK: Final = re.compile(r"[?？؟]\s*$")
Stems: TypeAlias = tuple[str, ...]


class _Parts(NamedTuple):
    """A question: its sentences, which of them ask, and the content stems of those."""

    sentences: Sequence[str]
    asking: frozenset[int]
    stems: Stems

    @property
    def context(self) -> list[str]:
        """Return the sentences that do not ask."""
        return [one for i, one in enumerate(self.sentences) if i not in self.asking]


class _Asking(NamedTuple):
    """A correction among those to one sentence: its user, its claim, and the stems of the context."""

    user: str
    claim: int
    stems: frozenset[str]


def same_but_for_stories(
    corrections: Sequence[Correction], questions: Vectors, claim_of: Sequence[int]
) -> Matrix:
    """Return (vectors, vectors) ones for questions that are equal without stories, `NEIGHBOURS` of each on both sides.

    Args:
        corrections: The corrections.
        questions: Vectors of their questions.
        claim_of: Claim of each correction, as found by these vectors.

    """
    vectors_with: dict[Stems, dict[int, None]] = defaultdict(dict)
    for text, vector in zip(without_stories(corrections, claim_of), questions.of.tolist(), strict=True):
        vectors_with[content_stems(text)][vector] = None
    one, other = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for equal in vectors_with.values():
        vectors = np.sort(np.fromiter(equal, dtype=np.int64))
        for distance in range(1, min(len(vectors), NEIGHBOURS + 1)):
            one.append(vectors[:-distance])
            other.append(vectors[distance:])
    rows, columns = np.concatenate(one), np.concatenate(other)
    size = questions.matrix.shape[0]
    found = csr_matrix((np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=(size, size))
    found.data[:] = 1  # two questions with one vector may be equal to others in two ways
    return found.maximum(found.T).tocsr()


def without_stories(corrections: Sequence[Correction], claim_of: Sequence[int]) -> list[str]:
    """Return the questions without stories. `claim_of` has the claim of each correction."""
    parts = _parts_of(corrections, claim_of)
    corrections_to: dict[Stems, dict[_Asking, None]] = defaultdict(dict)
    for one, part, claim in zip(corrections, parts, claim_of, strict=True):
        if len(set(part.stems)) >= LEAST_STEMS:
            stems = frozenset(stem for text in part.context for stem in content_stems(text))
            corrections_to[part.stems][_Asking(one.user, claim, stems.difference(part.stems))] = None
    dispensable = _dispensable(corrections_to.values())
    alone = {stems for stems, given in corrections_to.items() if _stands_alone(given, dispensable)}
    return [
        _shortened(one.question, part, dispensable, stands_alone=part.stems in alone)
        for one, part in zip(corrections, parts, strict=True)
    ]


def _shortened(question: str, part: _Parts, dispensable: frozenset[str], *, stands_alone: bool) -> str:
    """Return a question without the sentences that are stories; itself if it has none."""
    if not part.context or len(set(part.stems)) < LEAST_STEMS:
        return question
    known = dispensable.union(part.stems)
    kept = [
        one
        for i, one in enumerate(part.sentences)
        if i in part.asking or not (stands_alone or known.issuperset(content_stems(one)))
    ]
    return question if len(kept) == len(part.sentences) else " ".join(kept)


# --- sentences ----------------------------------------------------------------------------------------------------


def _parts_of(corrections: Sequence[Correction], claim_of: Sequence[int]) -> list[_Parts]:
    """Return the parts of each question."""
    users: dict[Stems, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for one, claim in zip(corrections, claim_of, strict=True):
        sentences, asking = _sentences(one.question)
        if len(sentences) > 1 and not asking:
            for sentence in sentences:
                users[content_stems(sentence)][claim].add(one.user)
    agreement = {stems: _agreement(by_claim) for stems, by_claim in users.items()}
    found = []
    for one in corrections:
        sentences, asking = _sentences(one.question)
        if not asking and sentences:
            scores = [
                agreement.get(stems, 0) if len(set(stems := content_stems(sentence))) >= LEAST_STEMS else 0
                for sentence in sentences
            ]
            asking = frozenset([max(range(len(sentences)), key=lambda i: (scores[i], i))])
        stems = content_stems(" ".join(sentences[i] for i in sorted(asking)))
        found.append(_Parts(sentences, asking, stems))
    return found


@lru_cache(maxsize=16_384)
def _sentences(question: str) -> tuple[tuple[str, ...], frozenset[int]]:
    """Return the sentences of a question, and which of them ask."""
    sentences = tuple(stripped for one in _SENTENCE.findall(question) if (stripped := one.strip()))
    asking = (i for i, one in enumerate(sentences) if _QUESTION_MARK.search(one) or is_open_request(one))
    return sentences, frozenset(asking)


def _agreement(users: dict[int, set[str]]) -> float:
    """Return the share of a sentence's users who agree on one claim; 0 if no two do."""
    most = max(map(len, users.values()))
    return most / len(set().union(*users.values())) if most > 1 else 0


# --- evidence -----------------------------------------------------------------------------------------------------


def _dispensable(sentences: Collection[Collection[_Asking]]) -> frozenset[str]:
    """Return the stems without which others said the same."""
    needed: dict[str, set[tuple[int, str]]] = defaultdict(set)
    spared: dict[str, set[tuple[int, str]]] = defaultdict(set)
    for given in sentences:
        for claim, members in _agreed(given):
            having = Counter(stem for asking in members for stem in asking.stems)
            of_user = Counter(asking.user for asking in members)
            own = Counter((asking.user, stem) for asking in members for stem in asking.stems)
            for user, stem in own:
                is_spared = having[stem] - own[user, stem] < len(members) - of_user[user]
                (spared if is_spared else needed)[stem].add((claim, user))
    return frozenset(
        stem
        for stem, users in spared.items()
        if len({claim for claim, _ in users}) >= LEAST_CLAIMS and len(users) > len(needed.get(stem, ()))
    )


def _stands_alone(given: Collection[_Asking], dispensable: frozenset[str]) -> bool:
    """Return whether the answer to a sentence does not depend on its context."""
    agreeing: set[str] = set()
    for claim, members in _agreed(given):
        common = frozenset.intersection(*(asking.stems for asking in members)) - dispensable
        if common and not any(common & asking.stems for asking in given if asking.claim != claim):
            return False
        for asking in members:
            others = islice((one for one in members if one.user != asking.user), COMPARED)
            if any(one.stems.isdisjoint(asking.stems - dispensable) for one in others):
                agreeing.add(asking.user)
    return 2 * len(agreeing) > len({asking.user for asking in given})


def _agreed(given: Collection[_Asking]) -> Iterator[tuple[int, list[_Asking]]]:
    """Yield each claim that two users made, with their corrections."""
    by_claim: dict[int, list[_Asking]] = defaultdict(list)
    for asking in given:
        by_claim[asking.claim].append(asking)
    for claim, members in by_claim.items():
        if len({asking.user for asking in members}) > 1:
            yield claim, members
