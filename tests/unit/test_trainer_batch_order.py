"""Order of training rows: every row trains, replay reaches its share, batches have similar lengths."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.training.batch_order import order_by_length, replay_rows_needed, select_replay


@given(
    train_tokens=st.integers(0, 50_000),
    replay_tokens=st.lists(st.integers(5, 80), min_size=1, max_size=40),
    share=st.floats(0, 0.5),
    epochs=st.floats(0.3, 6),
)
def test_replay_reaches_its_share_or_repeats_in_every_epoch(
    train_tokens: int, replay_tokens: list[int], share: float, epochs: float
) -> None:
    by_epoch = select_replay(train_tokens, replay_tokens, share, epochs)
    assert len(by_epoch) == math.ceil(epochs)
    assert all(len(set(epoch)) == len(epoch) for epoch in by_epoch), "no row twice in an epoch"
    times = Counter(index for epoch in by_epoch for index in epoch)
    assert set(times) == set(range(len(replay_tokens)))
    assert max(times.values()) - min(times.values()) <= 1
    tokens = sum(replay_tokens[index] * count for index, count in times.items())
    reached = tokens >= share * (tokens + train_tokens) - 1e-6
    assert reached or set(times.values()) == {len(by_epoch)}
    # No more rows repeat than the share requires.
    fewer = tokens - max(replay_tokens)
    assert max(times.values()) == 1 or fewer < share * (fewer + train_tokens) + 1e-6


@pytest.mark.parametrize(("train_tokens", "share"), [(90_000, 0.1), (1_000, 0.5), (0, 0.1)])
def test_needed_replay_rows_reach_the_share_without_repeats(train_tokens: int, share: float) -> None:
    needed = replay_rows_needed(train_tokens, [40, 60], share)
    assert needed * 50 >= share * (needed * 50 + train_tokens)
    assert (needed - 1) * 50 < share * ((needed - 1) * 50 + train_tokens) or needed == 0
    assert replay_rows_needed(train_tokens, [], share) == 0


@given(
    corrections=st.integers(1, 60),
    replay=st.integers(0, 50),
    epochs=st.integers(1, 5),
    batch=st.integers(1, 9),
    seed=st.integers(0, 3),
)
def test_corrections_train_once_per_epoch_and_replay_rows_once(
    corrections: int, replay: int, epochs: int, batch: int, seed: int
) -> None:
    rows = [f"c{i}" for i in range(corrections)]
    replay_rows = [f"r{i}" for i in range(replay)]
    by_epoch = [replay_rows[epoch::epochs] for epoch in range(epochs)]
    ordered = order_by_length(rows, by_epoch, float(epochs), batch, lambda row: 1 + int(row[1:]) % 7, seed)
    assert Counter(ordered) == Counter(rows * epochs + replay_rows)
    assert ordered == order_by_length(
        rows, by_epoch, float(epochs), batch, lambda row: 1 + int(row[1:]) % 7, seed
    )


def test_half_an_epoch_contains_half_of_the_corrections() -> None:
    ordered = order_by_length(list(range(40)), [], 1.5, 4, lambda row: 5, 1)
    assert len(ordered) == 60
    assert set(Counter(ordered).values()) == {1, 2}


def test_rows_of_a_batch_have_similar_lengths() -> None:
    rows = list(range(10, 410))
    ordered = order_by_length(rows, [], 2.0, 8, lambda row: row, 3)
    batches = [ordered[i : i + 8] for i in range(0, len(ordered), 8)]
    padded = sum(8 * max(batch) for batch in batches)
    assert padded < 1.3 * sum(ordered)
    unsorted = sum(8 * max(rows[i::50]) for i in range(50))
    assert unsorted > 1.5 * sum(rows)


def test_epochs_have_different_batches() -> None:
    ordered = order_by_length(list(range(80)), [], 2.0, 8, lambda row: 10 + row % 5, 1)
    batches = [frozenset(ordered[i : i + 8]) for i in range(0, len(ordered), 8)]
    assert len(set(batches)) == len(batches)
