"""Tests of which stores the changelog can complete, and which must be rebuilt."""

from __future__ import annotations

import pytest

from shared.stream.state_store import AS_OF_KEY, CHANGELOG_ID_KEY, MemoryStore
from shared.stream.store_validation import ChangelogPartition, rebuild_reason

HOUR = 3_600_000
NOW = 1_700_000_000_000
LOG = ChangelogPartition("current topic", low=100, high=1_000, delete_retention_ms=24 * HOUR)


def store_at(position: int, *, hours_ago: float = 1.0, topic_id: str = "current topic") -> MemoryStore:
    store = MemoryStore()
    as_of = b"%d" % (NOW - round(hours_ago * HOUR))
    store.apply({b"k": b"v", CHANGELOG_ID_KEY: topic_id.encode(), AS_OF_KEY: as_of}, position)
    return store


def test_empty_store_needs_no_rebuild() -> None:
    assert rebuild_reason(MemoryStore(), LOG, NOW) is None


@pytest.mark.parametrize("position", [100, 500, 999, 1_000])
def test_store_within_the_changelog_needs_no_rebuild(position: int) -> None:
    assert rebuild_reason(store_at(position), LOG, NOW) is None


@pytest.mark.parametrize(
    ("position", "why"),
    [(99, "too old: its position is 99"), (1_001, "beyond the end of the changelog at 1000")],
)
def test_store_outside_the_changelog_is_rebuilt(position: int, why: str) -> None:
    assert why in (rebuild_reason(store_at(position), LOG, NOW) or "")


def test_copy_of_another_changelog_topic_is_rebuilt() -> None:
    assert "another changelog" in (rebuild_reason(store_at(500, topic_id="former topic"), LOG, NOW) or "")


def test_store_that_may_have_missed_deletions_is_rebuilt() -> None:
    """The limit is half of the changelog's retention of deletions; the rest is a margin for clocks and reading."""
    assert rebuild_reason(store_at(500, hours_ago=11.9), LOG, NOW) is None
    assert "last complete 12.1 h ago" in (rebuild_reason(store_at(500, hours_ago=12.1), LOG, NOW) or "")


def test_store_from_the_future_is_rebuilt() -> None:
    assert rebuild_reason(store_at(500, hours_ago=-11.9), LOG, NOW) is None
    assert "too old" in (rebuild_reason(store_at(500, hours_ago=-12.1), LOG, NOW) or "")


def test_complete_store_needs_no_rebuild_at_any_age() -> None:
    """One further offset is the commit marker of the store's last transaction; two may include a deletion."""
    assert rebuild_reason(store_at(1_000, hours_ago=1_000), LOG, NOW) is None
    assert rebuild_reason(store_at(999, hours_ago=1_000), LOG, NOW) is None
    assert rebuild_reason(store_at(998, hours_ago=1_000), LOG, NOW) is not None


def test_store_of_unknown_age_is_rebuilt() -> None:
    store = MemoryStore()
    store.apply({CHANGELOG_ID_KEY: b"current topic"}, 500)
    assert "age is unknown" in (rebuild_reason(store, LOG, NOW) or "")
