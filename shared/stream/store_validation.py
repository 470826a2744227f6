"""Whether a local store can be brought up to date from the changelog, or has to be rebuilt. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from shared.stream.state_store import AS_OF_KEY, CHANGELOG_ID_KEY, StateStore

DELETE_RETENTION_MS = 86_400_000
"""Kafka's default of `delete.retention.ms`."""


@dataclass(frozen=True, slots=True)
class ChangelogPartition:
    """One partition of the changelog, as the broker describes it now."""

    topic_id: str
    """Id of the topic; a topic that is deleted and created again under the same name gets a new one."""
    low: int
    """First offset that is still in the log."""
    high: int
    """Offset that the next record will get."""
    delete_retention_ms: int = DELETE_RETENTION_MS
    """Minimum time for which a deletion stays in the log. Later, compaction removes every trace of the key."""


def rebuild_reason(store: StateStore, changelog: ChangelogPartition, now_ms: int) -> str | None:
    """Return why a store must be wiped and rebuilt, or None if reading the rest of the changelog completes it.

    An empty store needs no rebuild.
    """
    position = store.changelog_position()
    if position is None:
        return None
    if _text(store, CHANGELOG_ID_KEY) != changelog.topic_id:
        return "it is a copy of another changelog topic"
    if position < changelog.low:
        return f"it is too old: its position is {position}, and the changelog begins at {changelog.low}"
    if position > changelog.high:
        return f"its position {position} is beyond the end of the changelog at {changelog.high}"
    if position >= changelog.high - 1:
        # At most the commit marker of the store's own last transaction follows: nothing was written since.
        return None
    return _age_reason(_text(store, AS_OF_KEY), changelog.delete_retention_ms, now_ms)


def _age_reason(as_of: str, delete_retention_ms: int, now_ms: int) -> str | None:
    """Return why the store's age is a problem: compaction may have removed deletions that it has not read.

    Half of the retention time is kept as a margin for clock differences and for reading.
    """
    if not as_of.isdecimal():
        return "its age is unknown"
    age = abs(now_ms - int(as_of))
    if age > delete_retention_ms // 2:
        return (
            f"it is too old: last complete {age / 3_600_000:.1f} h ago, and the changelog keeps deletions for "
            f"{delete_retention_ms / 3_600_000:.1f} h"
        )
    return None


def _text(store: StateStore, key: bytes) -> str:
    return (store.get(key) or b"").decode(errors="replace")
