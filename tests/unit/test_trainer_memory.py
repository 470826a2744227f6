"""Batches of an evaluation: smaller ones where memory does not suffice, and every row exactly once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.base import memory
from services.trainer.base.memory import BatchLimit, is_out_of_memory, run_in_batches
from services.trainer.run import eval_batch


@pytest.fixture(autouse=True, scope="module")
def without_garbage_collection() -> Iterator[None]:
    """In a process that has loaded torch, each collection takes about a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "release_memory", lambda: None)
        yield


@given(rows=st.integers(0, 200), limit=st.integers(1, 80), capacity=st.integers(1, 100))
def test_every_row_is_processed_once_in_order_within_the_capacity(
    rows: int, limit: int, capacity: int
) -> None:
    processed: list[int] = []
    reported: list[tuple[int, int]] = []
    attempts = 0

    def work(batch: Sequence[int]) -> None:
        nonlocal attempts
        attempts += 1
        if len(batch) > capacity:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        processed.extend(batch)

    batch_limit = BatchLimit(limit)
    run_in_batches(range(rows), batch_limit, work, lambda done, total: reported.append((done, total)))
    assert processed == list(range(rows))
    assert batch_limit.rows >= min(limit, (capacity + 1) // 2), "not smaller than needed"
    assert attempts <= len(reported) + 7, "each size fails once"
    assert reported == sorted(reported)
    assert not reported or reported[-1] == (rows, rows)


def test_single_row_that_does_not_fit_raises_its_error() -> None:
    def work(batch: Sequence[int]) -> None:
        raise MemoryError(f"no memory for {len(batch)}")

    limit = BatchLimit(8)
    with pytest.raises(MemoryError, match="no memory for 1"):
        run_in_batches(range(20), limit, work)
    assert limit.rows == 1


def test_other_errors_are_raised_at_once() -> None:
    tried: list[int] = []

    def work(batch: Sequence[int]) -> None:
        tried.append(len(batch))
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        run_in_batches(range(20), BatchLimit(8), work)
    assert tried == [8]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
        ),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory_is_recognized_on_cpu_and_gpu(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), ValueError("out of memory")])
def test_other_errors_do_not_mean_out_of_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_smaller_batches_are_kept_in_the_runs_folder(tmp_path: Path) -> None:
    limits = eval_batch.limits(tmp_path)
    assert (limits.generate.rows, limits.score.rows) == eval_batch.sizes(tmp_path) == (64, 8)
    assert eval_batch.reduction_note(tmp_path) is None
    limits.generate.reduce(20)
    limits.score.reduce(8)
    assert eval_batch.sizes(tmp_path) == (10, 4)
    assert eval_batch.limits(tmp_path).generate.rows == 10
    assert "10 are generated and 4 scored at once" in str(eval_batch.reduction_note(tmp_path))


def test_halving_for_the_next_start_ends_at_one_row(tmp_path: Path) -> None:
    found = []
    while eval_batch.halve(tmp_path):
        found.append(eval_batch.sizes(tmp_path))
    assert found == [(32, 4), (16, 2), (8, 1), (4, 1), (2, 1), (1, 1)]
