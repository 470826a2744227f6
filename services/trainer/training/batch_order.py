"""In which order rows train: every row once an epoch, among them replay rows that are new in each epoch.

Replay that repeats is learned by heart and then holds nothing in place; so all of it is spread over the epochs. Batches
are of rows of like length, which wastes little on padding, in an order of chance. Judged answers are not sorted so: the
liked ones are often shorter or longer than the others, and a batch is to have both.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

LENGTH_NOISE = 0.15
"""Lengths are sorted with so much noise, so that an epoch's batches are not those of the one before."""


def select_replay(corrections: int, replay: Sequence[int], least_share: float) -> list[int]:
    """Which replay rows train (indices, repeated where need be), given the tokens of all corrections in all epochs and
    of each replay row: all once, then again in order until they are `least_share` of all tokens."""
    if not replay or sum(replay) == 0:
        return []
    chosen = list(range(len(replay)))
    tokens = sum(replay)
    while tokens < least_share * (tokens + corrections):
        i = len(chosen) % len(replay)
        chosen.append(i)
        tokens += replay[i]
    return chosen


def order_by_length(
    corrections: Sequence[T],
    replay: Sequence[T],
    epochs: float,
    batch_size: int,
    length: Callable[[T], int],
    seed: int,
) -> list[T]:
    """All rows of a run, to be cut into batches from the front. Half an epoch has half of the corrections. What is left
    of an epoch after its last whole batch opens the next one."""
    dice = random.Random(seed)  # noqa: S311 - an order, not a secret
    rounds = max(1, math.ceil(epochs))
    out: list[T] = []
    left: list[T] = []
    for number in range(rounds):
        share = min(1.0, epochs - number)
        pool = [
            *left,
            *dice.sample(list(corrections), round(share * len(corrections))),
            *replay[number::rounds],
        ]
        pool.sort(key=lambda row: length(row) * dice.uniform(1 - LENGTH_NOISE, 1 + LENGTH_NOISE))
        spare = len(pool) % batch_size if number < rounds - 1 else 0
        left = [pool.pop(dice.randrange(len(pool))) for _ in range(spare)]
        batches = [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
        last = [batches.pop()] if batches and len(batches[-1]) < batch_size else []
        dice.shuffle(batches)
        out += [row for batch in [*batches, *last] for row in batch]
    return out


def order_judged(liked: Sequence[T], disliked: Sequence[T], epochs: float, seed: int) -> list[T]:
    """All judged rows of a run: any piece of it has about as many of either label as all of it has."""
    dice = random.Random(seed)  # noqa: S311 - an order, not a secret
    out: list[T] = []
    for number in range(max(1, math.ceil(epochs))):
        share = min(1.0, epochs - number)
        out += interleave([dice.sample(list(side), round(share * len(side))) for side in (liked, disliked)])
    return out


def interleave(parts: Sequence[Sequence[T]]) -> list[T]:
    """One list of all, each part in its own order and spread over the whole."""
    places = [
        ((i + 0.5) / len(part), number, one)
        for number, part in enumerate(parts)
        for i, one in enumerate(part)
    ]
    return [one for _, _, one in sorted(places, key=lambda place: place[:2])]


def split_batches(rows: Sequence[T], size: int) -> list[Sequence[T]]:
    """Batches from the front; the last may be shorter."""
    return [rows[i : i + size] for i in range(0, len(rows), size)]
