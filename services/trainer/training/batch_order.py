"""Order in which rows train: each row once per epoch, mixed with replay rows that differ from epoch to epoch.

Replay rows that repeat are memorized and no longer preserve the base's behaviour, so they are distributed over the
epochs. Batches contain rows of similar length, which saves padding, and are shuffled. Judged answers (KTO) are not
grouped by length: liked answers are often shorter or longer than disliked ones, and a batch should contain both.

All functions are deterministic, so a resumed run continues in the same order.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

T = TypeVar("T")

LENGTH_NOISE: Final = 0.15
"""Relative noise added to lengths before sorting, so that epochs do not have the same batches."""


def select_replay(train_tokens: int, replay_tokens: Sequence[int], min_share: float) -> list[int]:
    """Return the indices of the replay rows that train: each once, then repeated until they reach `min_share`.

    Args:
        train_tokens: Tokens of all other rows in all epochs.
        replay_tokens: Tokens of each replay row.
        min_share: Minimum share of replay tokens among all tokens.

    """
    if not replay_tokens or sum(replay_tokens) == 0:
        return []
    selected = list(range(len(replay_tokens)))
    tokens = sum(replay_tokens)
    while tokens < min_share * (tokens + train_tokens):
        index = len(selected) % len(replay_tokens)
        selected.append(index)
        tokens += replay_tokens[index]
    return selected


def order_by_length(
    rows: Sequence[T],
    replay: Sequence[T],
    epochs: float,
    batch_size: int,
    length: Callable[[T], int],
    seed: int,
) -> list[T]:
    """Return the rows of all epochs in order, to be split into batches from the front.

    A fraction of an epoch contains that fraction of `rows`. Rows left over after an epoch's last whole batch move to
    the next epoch.
    """
    rng = random.Random(seed)  # noqa: S311 - not used for security
    epoch_count = max(1, math.ceil(epochs))
    ordered: list[T] = []
    left_over: list[T] = []
    for epoch in range(epoch_count):
        fraction = min(1.0, epochs - epoch)
        pool = [
            *left_over,
            *rng.sample(list(rows), round(fraction * len(rows))),
            *replay[epoch::epoch_count],
        ]
        pool.sort(key=lambda row: length(row) * rng.uniform(1 - LENGTH_NOISE, 1 + LENGTH_NOISE))
        surplus = len(pool) % batch_size if epoch < epoch_count - 1 else 0
        left_over = [pool.pop(rng.randrange(len(pool))) for _ in range(surplus)]
        batches = [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
        last = [batches.pop()] if batches and len(batches[-1]) < batch_size else []
        rng.shuffle(batches)
        ordered += [row for batch in [*batches, *last] for row in batch]
    return ordered


def order_judged(liked: Sequence[T], disliked: Sequence[T], epochs: float, seed: int) -> list[T]:
    """Return the judged rows of all epochs in order. Every part of it has about the same ratio of the labels."""
    rng = random.Random(seed)  # noqa: S311 - not used for security
    ordered: list[T] = []
    for epoch in range(max(1, math.ceil(epochs))):
        fraction = min(1.0, epochs - epoch)
        ordered += interleave(
            [rng.sample(list(rows), round(fraction * len(rows))) for rows in (liked, disliked)]
        )
    return ordered


def interleave(parts: Sequence[Sequence[T]]) -> list[T]:
    """Merge sequences into one list. Each keeps its order and is spread evenly over the list."""
    positions = [
        ((i + 0.5) / len(part), number, item)
        for number, part in enumerate(parts)
        for i, item in enumerate(part)
    ]
    return [item for _, _, item in sorted(positions, key=lambda position: position[:2])]


def split_batches(rows: Sequence[T], size: int) -> list[Sequence[T]]:
    """Split rows into batches of `size`. The last batch may be smaller."""
    return [rows[i : i + size] for i in range(0, len(rows), size)]
