"""Question groups of held-out users' feedback: items of one group ask for the same fact, so they are not independent.

A snapshot groups only rows that state a claim. Here judged answers join the group of a correction, or of each other, if
their questions have the same content words. Near-duplicates are not joined: "the price of model A" and "the price of
model B" are different facts, and a chain of such questions would become one group.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from services.trainer.dataset.filters import GroupedRow
from services.trainer.dataset.question_groups import as_pairs, components
from services.trainer.dataset.words import content_stems, normalised


def question_groups(held_out: Sequence[GroupedRow]) -> Mapping[str, str]:
    """Return the name of each row's question group, by identity of the row. It is the least identity in the group.

    Rows are in one group if the snapshot put them there, or if their questions have the same content words.
    """
    if not held_out:
        return {}
    numbers: dict[Hashable, int] = {}
    links = [
        (
            numbers.setdefault(_content(grouped.row.question), len(numbers)),
            numbers.setdefault(grouped.group, len(numbers)),
        )
        for grouped in held_out
    ]
    labels = components(len(numbers), [as_pairs(links)]).tolist()
    label_of = {
        grouped.row.identity: labels[question] for grouped, (question, _) in zip(held_out, links, strict=True)
    }
    names: dict[int, str] = {}
    for identity in sorted(label_of):
        names.setdefault(label_of[identity], identity)
    return {identity: names[label] for identity, label in label_of.items()}


def _content(question: str) -> Hashable:
    return frozenset(content_stems(question)) or normalised(question)
