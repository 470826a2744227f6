"""What an edit of a text changed, and how much of the change another text has. Pure.

`find_edit` compares the original with the correction token by token (difflib) and returns the changed spans. Each span
has evidence: what only the correction has (added), and what only the original has (removed). Evidence is, in order:

1. Tokens of the span that the other text does not have at all. Names, numbers and other words of the topic count
   wherever they are. A single digit, an operator, a negation or a function word says little by itself, so it counts
   next to a word that is next to it in the span's own text.
2. The shortest runs of tokens across the span that the other text does not have, such as `items 1` for an index that
   also is elsewhere.
3. The whole text, if runs of `MAX_RUN` tokens do not tell the texts apart.

So the correction itself has all that was added and nothing that was removed, and the original the opposite.

Texts are compared by the words of `dataset/words.py`: folded, without punctuation, numerals as digits, n-grams where a
script has no spaces. If their words are equal, or too different, they are compared as they are written, with case,
accents, brackets and punctuation, and finally with white space.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import cached_property
from typing import Final, TypeAlias

from services.trainer.dataset.words import content_stems, is_negated, names, stem, words

EDIT_SHARE: Final = 0.5
"""A correction is an edit if runs of at least `MIN_RUN` common tokens make up this share of the shorter text."""
MIN_RUN: Final = 2
MIN_COMMON: Final = 2
MAX_RUN: Final = 32
NEIGHBOURS: Final = 2
"""Tokens before and after a token that says little by itself."""
SHORT_ANSWER: Final = 4
"""In an answer of at most this many tokens, a number needs no neighbour."""
ADDED_WEIGHT: Final = 0.75
"""Weight of what was added, in an edit that adds something."""
KEPT_SHARE: Final = 0.5
"""An answer with this share of the unchanged words is about the same, so that what it lacks was left out."""
FACTS_WEIGHT: Final = 0.75
"""Weight of the spans with names, numbers, operators or negations, in an edit that also changes other words."""
MAX_COMPARISONS: Final = 2_000_000
"""Pairs of equal tokens up to which two texts are compared token by token. It bounds the time of repetitive texts."""

Keys: TypeAlias = tuple[str, ...]
_START: Final = "\x02"
_END: Final = "\x03"
_CONTRACTION: Final = re.compile(r"\b(ca|wo|sha|\w+)n['’]t\b|\b(can)not\b", re.IGNORECASE)
_FULL_FORMS: Final = {"ca": "can", "wo": "will", "sha": "shall"}
_UNSPACED: Final = (
    "\u0e00-\u0eff\u0f00-\u109f\u1780-\u17ff\u3005\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7ff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_WRITTEN: Final = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[<>=!+*/%^|&~-]+|[^\w\s]")
_WITH_SPACE: Final = re.compile(rf"\s+|{_WRITTEN.pattern}")


@dataclass(frozen=True)
class TokenText:
    """A text as tokens, between a mark of its start and one of its end."""

    keys: Keys
    """What is compared."""
    written: Keys
    """What stands in the text: the words before stemming."""

    @cached_property
    def positions(self) -> dict[str, list[int]]:
        """Positions of each key."""
        found: dict[str, list[int]] = defaultdict(list)
        for position, key in enumerate(self.keys):
            found[key].append(position)
        return found

    def runs(self, size: int) -> frozenset[Keys]:
        """Return all runs of `size` keys."""
        if size not in self._runs:
            starts = range(len(self.keys) - size + 1)
            self._runs[size] = frozenset(self.keys[start : start + size] for start in starts)
        return self._runs[size]

    @cached_property
    def _runs(self) -> dict[int, frozenset[Keys]]:
        return {}

    def around(self, position: int) -> set[str]:
        """Return the keys next to a position."""
        near = range(max(0, position - NEIGHBOURS), min(len(self.keys), position + NEIGHBOURS + 1))
        return {self.keys[i] for i in near if i != position} - {_START, _END}


Tokenizer: TypeAlias = Callable[[str], TokenText]


def by_words(text: str) -> TokenText:
    """Return the text as stems of all its words. Contracted negations become words: `isn't` gives `is not`."""
    found = words(_CONTRACTION.sub(_expand, text))
    return TokenText((_START, *map(stem, found), _END), (_START, *found, _END))


def _expand(found: re.Match[str]) -> str:
    before = found[1] or found[2]
    return f"{_FULL_FORMS.get(before.lower(), before)} not"


def as_written(text: str) -> TokenText:
    """Return the text as words, operators and punctuation as they are, without white space."""
    found = _WRITTEN.findall(unicodedata.normalize("NFC", text))
    return TokenText((_START, *found, _END), (_START, *found, _END))


def with_space(text: str) -> TokenText:
    """Return the text as words, punctuation and white space."""
    found = _WITH_SPACE.findall(unicodedata.normalize("NFC", text))
    return TokenText((_START, *found, _END), (_START, *found, _END))


TOKENIZERS: Final[tuple[Tokenizer, ...]] = (by_words, as_written, with_space)
"""From the coarsest to the finest."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What shows that a text has a span (see the module)."""

    tokens: tuple[tuple[str, frozenset[str] | None], ...] = ()
    """Keys. One with neighbours counts next to one of these only."""
    runs: frozenset[Keys] = frozenset()
    whole: Keys = ()
    """Keys of the whole text, if nothing less tells it apart."""

    def share(self, text: TokenText) -> float:
        """Return which share of the evidence a text has."""
        if self.whole:
            return float(text.keys == self.whole)
        if self.runs:
            size = len(next(iter(self.runs)))
            return len(self.runs & text.runs(size)) / len(self.runs)
        return sum(_has(text, key, neighbours) for key, neighbours in self.tokens) / len(self.tokens)

    def labels(self) -> list[str]:
        """Return the evidence as texts, for people."""
        runs = sorted(" ".join(key for key in run if key not in (_START, _END)) for run in self.runs)
        return [key for key, _ in self.tokens] + runs


def _has(text: TokenText, key: str, neighbours: frozenset[str] | None) -> bool:
    positions = text.positions.get(key, ())
    if not positions or neighbours is None:
        return bool(positions)
    if key.isdigit() and len(text.keys) - 2 <= SHORT_ANSWER:
        return True
    return any(not neighbours.isdisjoint(text.around(position)) for position in positions)


@dataclass(frozen=True, slots=True)
class ChangedSpan:
    """One change: what the correction has in place of what the original had.

    Attributes:
        added: Evidence of what was added. For a span that was only deleted and is not distinctive, the place where
            the words before and after it meet.
        removed: Evidence of what was removed.
        weight: How much it counts among the spans of an edit.
    """

    added: Evidence | None
    removed: Evidence | None
    weight: float = 1.0


@dataclass(frozen=True)
class Edit:
    """The changes that lead from an original to a correction."""

    tokenize: Tokenizer
    spans: tuple[ChangedSpan, ...]
    unchanged: frozenset[str]
    """Keys that both texts have: those of the topic, if there are any."""

    def score(self, answer: str) -> float:
        """Return how much of the edit an answer has: the original 0, the correction 1.

        What was added has `ADDED_WEIGHT`, and the absence of what was removed the rest, or all if nothing was added.
        An absence shows nothing in an answer about something else, so it counts as far as unchanged words are there.
        """
        text = self.tokenize(answer)
        added = _mean([(span.added.share(text), span.weight) for span in self.spans if span.added])
        removed = _mean([(span.removed.share(text), span.weight) for span in self.spans if span.removed])
        if removed is None:
            return added or 0.0
        absent = (1 - removed) * self._kept(text)
        return absent if added is None else ADDED_WEIGHT * added + (1 - ADDED_WEIGHT) * absent

    def added_share(self, answer: str) -> float | None:
        """Return which share of the added evidence an answer has, or None if nothing was added."""
        text = self.tokenize(answer)
        shares = [span.added.share(text) for span in self.spans if span.added is not None]
        return sum(shares) / len(shares) if shares else None

    def labels(self) -> tuple[str, ...]:
        """Return what was added, for people."""
        return tuple(
            dict.fromkeys(label for span in self.spans if span.added for label in span.added.labels())
        )

    def restricted_to(self, keys: Set[str]) -> Edit:
        """Return the edit with only the added tokens among `keys`; unchanged if it added none of them."""
        spans = [
            replace(span, added=Evidence(tokens))
            for span in self.spans
            if span.added and (tokens := tuple(token for token in span.added.tokens if token[0] in keys))
        ]
        return replace(self, spans=tuple(spans)) if spans else self

    def _kept(self, text: TokenText) -> float:
        if not self.unchanged:
            return 1.0
        common = len(self.unchanged.intersection(text.positions))
        return min(1.0, common / (KEPT_SHARE * len(self.unchanged)))


def _mean(weighted: Sequence[tuple[float, float]]) -> float | None:
    total = sum(weight for _, weight in weighted)
    return sum(value * weight for value, weight in weighted) / total if total else None


@dataclass(frozen=True)
class _Side:
    """One of the two texts, while the spans are built."""

    text: TokenText
    other: TokenText
    content: Set[str]
    """Stems that carry the topic."""
    names: Set[str]
    ignored: Set[str]
    """Stems that a wrong answer has as well, such as those of the question."""
    is_by_words: bool

    def is_content(self, position: int) -> bool:
        return self.is_by_words and self.text.keys[position] in self.content

    def is_fact(self, position: int) -> bool:
        """Return whether a token is a number, an operator, a name or a negation."""
        written = self.text.written[position]
        return self.is_by_words and (
            any(map(str.isdigit, written))
            or not any(map(str.isalnum, written))
            or self.text.keys[position] in self.names
            or is_negated(written)
        )

    def neighbours(self, position: int) -> frozenset[str] | None:
        """Return the neighbours that a token needs, or None if it counts wherever it is."""
        written, key = self.text.written[position], self.text.keys[position]
        is_number = any(map(str.isdigit, written))
        is_topic = self.is_content(position) if self.is_by_words else bool(content_stems(written))
        is_word = is_topic and any(map(str.isalpha, written)) and not is_negated(written)
        if len(written) > 1 and (is_number or is_word):
            return None
        near: set[str] = set().union(*map(self.text.around, self.text.positions[key])) - {key}
        topic = {word for word in near if word in self.content and word not in self.ignored}
        return frozenset(topic if topic and not is_number else near) or None

    def evidence(self, start: int, end: int) -> Evidence:
        """Return the evidence of the tokens from `start` to `end`, which are not empty."""
        new = [i for i in range(start, end) if self.text.keys[i] not in self.other.positions]
        telling = [i for i in new if self.text.keys[i] not in self.ignored]
        for candidates in (
            filter(self.is_fact, telling),
            filter(self.is_content, telling),
            (i for i in new if self.is_fact(i) or self.is_content(i)),
            new,
        ):
            if chosen := {self.text.keys[i]: self.neighbours(i) for i in candidates}:
                return Evidence(tuple(chosen.items()))
        return self.contextual(start, end)

    def contextual(self, start: int, end: int) -> Evidence:
        """Return the shortest runs across a span, or across the place between two tokens, that the other text lacks."""
        keys = self.text.keys
        last = end - 1 if end > start else start - 1
        for size in range(2, min(MAX_RUN, len(keys)) + 1):
            starts = range(max(0, start - size + 1), min(last, len(keys) - size) + 1)
            if runs := {keys[i : i + size] for i in starts} - self.other.runs(size):
                inside = {run for run in runs if run[0] != _START and run[-1] != _END}
                return Evidence(runs=frozenset(inside or runs))
        return Evidence(whole=keys)


def find_edit(original: str, correction: str, ignored: Set[str] = frozenset()) -> Edit | None:
    """Return the edit, or None if the correction is a text of its own, or equal to the original.

    Args:
        original: The text before.
        correction: The text after.
        ignored: Stems that are no evidence if there is other evidence: those of the question.
    """
    same_words = False
    for tokenize in TOKENIZERS:
        before, after = tokenize(original), tokenize(correction)
        if before.keys == after.keys:
            same_words = True
            continue
        blocks = _common_blocks(before.keys, after.keys)
        if blocks is not None and (same_words or _is_edit(before, after, blocks)):
            return _edit(original, correction, tokenize, before, after, blocks, ignored)
        if same_words or tokenize is as_written:
            return None
    return None


def _common_blocks(before: Keys, after: Keys) -> list[tuple[int, int, int]] | None:
    """Return the common runs as (position before, position after, length), or None if that would take too long."""
    counts = Counter(before)
    if sum(counts[key] for key in after) > MAX_COMPARISONS:
        return None
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    return [(block.a, block.b, block.size) for block in matcher.get_matching_blocks()]


def _is_edit(before: TokenText, after: TokenText, blocks: Iterable[tuple[int, int, int]]) -> bool:
    shorter = min(len(before.keys), len(after.keys)) - 2
    common = 0
    for start, _, size in blocks:
        marks = sum(key in (_START, _END) for key in before.keys[start : start + size])
        if size >= MIN_RUN:
            common += size - marks
    return common >= MIN_COMMON and common >= EDIT_SHARE * shorter


def _edit(
    original: str,
    correction: str,
    tokenize: Tokenizer,
    before: TokenText,
    after: TokenText,
    blocks: Sequence[tuple[int, int, int]],
    ignored: Set[str],
) -> Edit:
    content = frozenset(content_stems(original)) | frozenset(content_stems(correction))
    known_names = names(original) | names(correction)
    is_by_words = tokenize is by_words
    old = _Side(before, after, content, known_names, ignored, is_by_words)
    new = _Side(after, before, content, known_names, ignored, is_by_words)
    spans: list[tuple[ChangedSpan, bool, bool]] = []
    i = j = 0
    for start_before, start_after, size in blocks:
        if i < start_before or j < start_after:
            changed = [(old, at) for at in range(i, start_before)] + [
                (new, at) for at in range(j, start_after)
            ]
            spans.append(
                (
                    _span(old, new, (i, start_before), (j, start_after)),
                    any(side.is_fact(at) for side, at in changed),
                    any(side.is_content(at) for side, at in changed),
                )
            )
        i, j = start_before + size, start_after + size
    weights = _weights([fact for _, fact, _ in spans], [content for _, _, content in spans])
    weighted = [replace(span, weight=weight) for (span, _, _), weight in zip(spans, weights, strict=True)]
    common = before.positions.keys() & after.positions.keys() - {_START, _END}
    topic = {key for key in common if (key in content if is_by_words else content_stems(key))}
    return Edit(tokenize, tuple(span for span in weighted if span.weight), frozenset(topic or common))


def _weights(has_fact: Sequence[bool], has_content: Sequence[bool]) -> list[float]:
    """Return the weights of spans: those with facts have `FACTS_WEIGHT`, if there are any, and function words none."""
    facts, others = sum(has_fact), sum(has_content) - sum(map(min, has_fact, has_content))
    if not facts:
        return [float(content or not others) for content in has_content]
    of_other = min(1.0, (1 / FACTS_WEIGHT - 1) * facts / max(1, others))
    return [
        1.0 if fact else of_other if content else 0.0
        for fact, content in zip(has_fact, has_content, strict=True)
    ]


def _span(old: _Side, new: _Side, before: tuple[int, int], after: tuple[int, int]) -> ChangedSpan:
    removed = old.evidence(*before) if before[0] < before[1] else None
    if after[0] < after[1]:
        return ChangedSpan(new.evidence(*after), removed)
    if removed is not None and removed.tokens:
        return ChangedSpan(None, removed)
    return ChangedSpan(new.contextual(*after), None)
