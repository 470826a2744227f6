"""Whether a store can be brought up to date by reading on, or has to be built anew. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from shared.stream.state_store import AS_OF_KEY, CHANGELOG_ID_KEY, StateStore

DELETE_RETENTION_MS = 86_400_000
"""Kafka's default of `delete.retention.ms`."""


@dataclass(frozen=True, slots=True)
class ChangelogPartition:
    """A partition of it, as the broker tells of it now."""

    topic_id: str
    """Of the topic: another one, if it was deleted and created again under its name. Empty where not told."""
    low: int
    """The first offset that is still there."""
    high: int
    """The offset that the next record will get."""
    delete_retention_ms: int = DELETE_RETENTION_MS
    """So long at least a deletion stays in the log; after that it is as if the key had never been."""


def rebuild_reason(store: StateStore, changelog: ChangelogPartition, now_ms: int) -> str | None:
    """Why it must be wiped; None if the rest of the changelog is all that it lacks, or it is empty."""
    position = store.changelog_position()
    if position is None:
        return None
    if _text(store, CHANGELOG_ID_KEY) != changelog.topic_id:
        return "it is the copy of another changelog"
    if position < changelog.low:
        return f"it is too old: it stands at offset {position}, and the changelog begins at {changelog.low}"
    if position > changelog.high:
        return f"it stands at offset {position}, beyond the end of the changelog at {changelog.high}"
    if position >= changelog.high - 1:
        # At most the marker of its own last transaction follows: nothing was written since, however long ago.
        return None
    return _age_reason(_text(store, AS_OF_KEY), changelog.delete_retention_ms, now_ms)


def _age_reason(as_of: str, delete_retention_ms: int, now_ms: int) -> str | None:
    """Deletions that it has not seen may be gone from the log. Half of their time is left for clocks and reading."""
    if not as_of.isdecimal():
        return "nothing tells how old it is"
    age = abs(now_ms - int(as_of))
    if age > delete_retention_ms // 2:
        return (
            f"it is too old: last complete {age / 3_600_000:.1f} h ago, and the changelog keeps deletions for "
            f"{delete_retention_ms / 3_600_000:.1f} h"
        )
    return None


def _text(store: StateStore, key: bytes) -> str:
    return (store.get(key) or b"").decode(errors="replace")
