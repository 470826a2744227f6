from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from services.trainer.training.batch_order import order_by_length, select_replay


@given(
    corrections=st.integers(0, 50_000),
    rows=st.lists(st.integers(5, 80), min_size=1, max_size=40),
    share=st.floats(0, 0.5),
)
def test_replay_is_at_least_its_share_of_all_tokens(corrections: int, rows: list[int], share: float) -> None:
    chosen = select_replay(corrections, rows, share)
    tokens = sum(rows[i] for i in chosen)
    assert tokens >= share * (tokens + corrections) - 1e-6
    assert set(chosen) == set(range(len(rows)))


@given(
    corrections=st.integers(1, 60),
    replay=st.integers(0, 50),
    epochs=st.integers(1, 5),
    batch=st.integers(1, 9),
    seed=st.integers(0, 3),
)
def test_every_correction_trains_once_an_epoch_and_every_replay_row_once(
    corrections: int, replay: int, epochs: int, batch: int, seed: int
) -> None:
    rows = [f"c{i}" for i in range(corrections)]
    others = [f"r{i}" for i in range(replay)]
    out = order_by_length(rows, others, float(epochs), batch, lambda row: 1 + int(row[1:]) % 7, seed)
    assert Counter(out) == Counter(rows * epochs + others)
    assert out == order_by_length(rows, others, float(epochs), batch, lambda row: 1 + int(row[1:]) % 7, seed)


def test_half_an_epoch_has_half_of_the_corrections() -> None:
    out = order_by_length(list(range(40)), [], 1.5, 4, lambda row: 5, 1)
    assert len(out) == 60
    assert set(Counter(out).values()) == {1, 2}


def test_a_batch_has_rows_of_like_length() -> None:
    rows = list(range(10, 410))
    out = order_by_length(rows, [], 2.0, 8, lambda row: row, 3)
    batches = [out[i : i + 8] for i in range(0, len(out), 8)]
    padded = sum(8 * max(batch) for batch in batches)
    assert padded < 1.3 * sum(out)
    unsorted = sum(8 * max(rows[i::50]) for i in range(50))
    assert unsorted > 1.5 * sum(rows)


def test_no_two_epochs_have_the_same_batches() -> None:
    out = order_by_length(list(range(80)), [], 2.0, 8, lambda row: 10 + row % 5, 1)
    batches = [frozenset(out[i : i + 8]) for i in range(0, len(out), 8)]
    assert len(set(batches)) == len(batches)
