"""Order of training rows: every row trains, replay reaches its share, batches have similar lengths."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.training.batch_order import replay_rows_needed, select_replay


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
