"""Order in which rows train: each row once per epoch, mixed with replay rows that differ from epoch to epoch.

Replay rows that repeat are memorized and no longer preserve the base's behaviour. So they are distributed over the
epochs, and repeat only if their share of the tokens requires it, at most once per epoch. Batches contain rows of
similar length, which saves padding, and are shuffled. Judged answers (KTO) are not grouped by length: liked answers are
often shorter or longer than disliked ones, and a batch should contain both.

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


def select_replay(
    train_tokens: int, replay_tokens: Sequence[int], min_share: float, epochs: float
) -> list[list[int]]:
    """Return the indices of the replay rows of each epoch.

    Each row trains at least once. Rows are repeated until they reach `min_share`, each at most once per epoch, so with
    too few of them the share stays smaller.

    Args:
        train_tokens: Tokens of all other rows in all epochs.
        replay_tokens: Tokens of each replay row.
        min_share: Minimum share of replay tokens among all tokens.
        epochs: Number of epochs.

    """
    by_epoch: list[list[int]] = [[] for _ in range(_whole(epochs))]
    tokens = 0
    for repetition in range(len(by_epoch)):
        for index, size in enumerate(replay_tokens):
            if repetition and tokens >= min_share * (tokens + train_tokens):
                return by_epoch
            by_epoch[(index + repetition) % len(by_epoch)].append(index)
            tokens += size
    return by_epoch


def replay_rows_needed(train_tokens: int, replay_tokens: Sequence[int], min_share: float) -> int:
    """Return how many replay rows, as long as the given ones on average, reach `min_share` without repeats."""
    mean = sum(replay_tokens) / max(1, len(replay_tokens))
    return math.ceil(train_tokens * min_share / (1 - min_share) / mean) if mean else 0


def _whole(epochs: float) -> int:
    return max(1, math.ceil(epochs))


def order_by_length(
    rows: Sequence[T],
    replay: Sequence[Sequence[T]],
    epochs: float,
    batch_size: int,
    length: Callable[[T], int],
    seed: int,
) -> list[T]:
    """Return the rows of all epochs in order, to be split into batches from the front. `replay` has rows by epoch.

    A fraction of an epoch contains that fraction of `rows`. Rows left over after an epoch's last whole batch move to
    the next epoch.
    """
    rng = random.Random(seed)  # noqa: S311 - not used for security
    epoch_count = _whole(epochs)
    ordered: list[T] = []
    left_over: list[T] = []
    for epoch in range(epoch_count):
        fraction = min(1.0, epochs - epoch)
        pool = [
            *left_over,
            *rng.sample(list(rows), round(fraction * len(rows))),
            *(replay[epoch] if epoch < len(replay) else ()),
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
    for epoch in range(_whole(epochs)):
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
