"""Micro-batches get the size that two measurements of memory allow."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.trainer.core.micro_batch_fit import MAX_GROWTH, USABLE_MEMORY, MemoryUse, fitting_tokens

GIB = 2**30


def fit(small: MemoryUse, large: MemoryUse, **given_: int) -> int:
    settings = {"available_bytes": 100 * GIB, "reserved_bytes": 0, "longest_row": 1, "limit": 10**9}
    return fitting_tokens(small, large, **(settings | given_))


def test_size_follows_from_memory_per_token() -> None:
    small, large = MemoryUse(1000, 15 * GIB), MemoryUse(5000, 35 * GIB)
    assert fit(small, large) == 15_872, "(90 - 10) GiB at 5 GiB per 1000 tokens, in whole multiples of 256"
    assert fit(small, large, reserved_bytes=40 * GIB) == 7936
    assert fit(small, large, limit=4000) == 3840
    assert fit(small, large, available_bytes=10 * GIB, longest_row=1500) == 1500, (
        "the longest row goes in any case"
    )


def test_size_does_not_go_far_beyond_what_was_measured() -> None:
    assert fit(MemoryUse(100, GIB), MemoryUse(200, GIB + 1)) <= MAX_GROWTH * 200
    assert fit(MemoryUse(100, 2 * GIB), MemoryUse(200, GIB)) <= MAX_GROWTH * 200, (
        "noise: more tokens, less memory"
    )


@given(
    constant=st.integers(0, 50 * GIB),
    per_token=st.integers(1000, 2**24),
    tokens=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    reserved=st.integers(0, 20 * GIB),
    longest=st.integers(1, 5000),
    limit=st.integers(1, 100_000),
)
def test_chosen_size_fits_unless_it_is_the_longest_row(
    constant: int, per_token: int, tokens: tuple[int, int], reserved: int, longest: int, limit: int
) -> None:
    small, large = (MemoryUse(count, constant + per_token * count) for count in (tokens[0], sum(tokens)))
    chosen = fit(small, large, reserved_bytes=reserved, longest_row=longest, limit=limit)
    assert longest <= chosen <= max(longest, limit)
    if chosen > longest:
        assert constant + per_token * chosen + reserved <= USABLE_MEMORY * 100 * GIB * (1 + 1e-9) + per_token
