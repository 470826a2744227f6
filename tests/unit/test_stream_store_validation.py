"""Which stores the rest of the changelog would make whole, and which have to be built anew."""

from __future__ import annotations

import pytest

from shared.stream.state_store import AS_OF_KEY, CHANGELOG_ID_KEY, MemoryStore
from shared.stream.store_validation import ChangelogPartition, rebuild_reason

HOUR = 3_600_000
NOW = 1_700_000_000_000
LOG = ChangelogPartition("this one", low=100, high=1_000, delete_retention_ms=24 * HOUR)


def store_at(position: int, *, hours_ago: float = 1.0, identity: str = "this one") -> MemoryStore:
    store = MemoryStore()
    as_of = b"%d" % (NOW - round(hours_ago * HOUR))
    store.apply({b"k": b"v", CHANGELOG_ID_KEY: identity.encode(), AS_OF_KEY: as_of}, position)
    return store


def test_an_empty_store_fits_whatever_the_changelog_holds() -> None:
    assert rebuild_reason(MemoryStore(), LOG, NOW) is None


@pytest.mark.parametrize("position", [100, 500, 999, 1_000])
def test_a_store_within_the_changelog_fits(position: int) -> None:
    assert rebuild_reason(store_at(position), LOG, NOW) is None


@pytest.mark.parametrize(
    ("position", "why"),
    [(99, "too old: it stands at offset 99"), (1_001, "beyond the end of the changelog at 1000")],
)
def test_a_store_outside_the_changelog_does_not(position: int, why: str) -> None:
    assert why in (rebuild_reason(store_at(position), LOG, NOW) or "")


def test_the_copy_of_another_changelog_of_that_name_does_not_fit() -> None:
    assert "another changelog" in (rebuild_reason(store_at(500, identity="the one before"), LOG, NOW) or "")


def test_a_store_that_may_have_missed_deletions_does_not_fit() -> None:
    """Half of the time for which the changelog keeps them: the rest is for clocks, and for reading."""
    assert rebuild_reason(store_at(500, hours_ago=11.9), LOG, NOW) is None
    assert "last complete 12.1 h ago" in (rebuild_reason(store_at(500, hours_ago=12.1), LOG, NOW) or "")


def test_a_store_from_the_future_tells_nothing_of_its_age() -> None:
    assert rebuild_reason(store_at(500, hours_ago=-11.9), LOG, NOW) is None
    assert "too old" in (rebuild_reason(store_at(500, hours_ago=-12.1), LOG, NOW) or "")


def test_a_store_that_lacks_nothing_fits_however_old_it_is() -> None:
    """One offset more is the marker of its own last transaction; two may be a deletion."""
    assert rebuild_reason(store_at(1_000, hours_ago=1_000), LOG, NOW) is None
    assert rebuild_reason(store_at(999, hours_ago=1_000), LOG, NOW) is None
    assert rebuild_reason(store_at(998, hours_ago=1_000), LOG, NOW) is not None


def test_a_store_without_an_age_does_not_fit() -> None:
    store = MemoryStore()
    store.apply({CHANGELOG_ID_KEY: b"this one"}, 500)
    assert "how old" in (rebuild_reason(store, LOG, NOW) or "")
