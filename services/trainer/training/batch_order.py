"""Which replay rows a run trains in each epoch, and how sequences are merged evenly. Pure.

Replay rows that repeat are memorized and no longer preserve the base's behaviour. So they are distributed over the
epochs, and repeat only if their share of the tokens requires it, at most once per epoch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


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


def interleave(parts: Sequence[Sequence[T]]) -> list[T]:
    """Merge sequences into one list. Each keeps its order and is spread evenly over the list."""
    positions = [
        ((i + 0.5) / len(part), number, item)
        for number, part in enumerate(parts)
        for i, item in enumerate(part)
    ]
    return [item for _, _, item in sorted(positions, key=lambda position: position[:2])]
