"""How many rows run, and how large the cache is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.inference.engine import memory
from services.inference.engine.batch_limits import BLOCK_TOKENS, BatchLimits, choose_limits
from shared.errors import Misconfigured

BLOCK = 1 << 20
GIB = 1 << 30


def limits(**changes: Any) -> BatchLimits:
    fields: dict[str, Any] = {
        "rows": 8,
        "step_tokens": 512,
        "max_context": 1024,
        "block_bytes": BLOCK,
        "groups": 1,
        "free_bytes": GIB,
        "cache_bytes": None,
    }
    return choose_limits(**(fields | changes))


def test_cache_takes_a_quarter_of_the_free_memory() -> None:
    assert limits(rows=64).blocks == 256


def test_cache_is_never_larger_than_its_rows_can_use() -> None:
    assert limits(free_bytes=100 * GIB).blocks == 8 * (1024 // BLOCK_TOKENS + 1)


def test_size_that_is_set_is_kept() -> None:
    assert limits(cache_bytes=700 * BLOCK).blocks == 700


def test_cache_larger_than_the_free_memory_is_refused() -> None:
    with pytest.raises(Misconfigured, match=r"KV_CACHE_MB: 2000 MiB are more than the 1024 MiB"):
        limits(cache_bytes=2000 * BLOCK)


@pytest.mark.parametrize("groups", [1, 2])
def test_cache_too_small_for_one_row_is_refused(groups: int) -> None:
    with pytest.raises(Misconfigured, match=f"to at least {3 * groups}"):
        limits(cache_bytes=BLOCK, groups=groups)
    least = limits(cache_bytes=3 * groups * BLOCK, groups=groups)
    assert least.max_length >= BLOCK_TOKENS


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("length", [1, 31, 32, 33, 1000])
def test_longest_row_is_the_longest_whose_blocks_fit(groups: int, length: int) -> None:
    blocks = BatchLimits(8, 512, 0, groups).blocks_of(length)
    assert BatchLimits(8, 512, blocks, groups).max_length >= length
    assert BatchLimits(8, 512, blocks - groups, groups).max_length < length


def test_step_has_room_for_a_token_of_every_row() -> None:
    assert limits(rows=600).step_tokens == 600


def test_free_memory_is_what_the_container_leaves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = limit, use, statistics = tuple(tmp_path / name for name in ("max", "current", "stat"))
    monkeypatch.setattr(memory, "CGROUPS", (files,))
    machine = memory.free_bytes("cpu")
    assert machine > 1 << 20
    limit.write_text("max\n")
    use.write_text("700000\n")
    statistics.write_text("anon 1\ninactive_file 200000\nactive_file 5\n")
    assert memory.free_bytes("cpu") > 1 << 20
    limit.write_text("1000000\n")
    assert memory.free_bytes("cpu") == 500_000
    use.write_text("1300000\n")
    assert memory.free_bytes("cpu") == 0
