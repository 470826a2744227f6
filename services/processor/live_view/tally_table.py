"""The newest tally of each key and their sums per version. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from shared.errors import Rejected
from shared.events import Tally, to_ms
from shared.feedback_kinds import FEEDBACK_KINDS

COUNTERS: Final = tuple(name for name, field in Tally.model_fields.items() if field.default == 0)
"""The counters of a tally, as its model orders them."""
MAX_KEYS: Final = 200_000
"""Tallies kept, some 600 bytes each. A key is one user of one version in one partition."""
VERSIONS_SHOWN: Final = 50


class Entry(NamedTuple):
    """The newest tally of one key. `counts` is in the order of `COUNTERS`."""

    version: str
    user_id: str
    updated_ms: int
    counts: tuple[int, ...]


def parse_entry(value: bytes) -> Entry:
    """Return the entry of a tally record. Raises `Malformed` or `Oversized` if it is not one."""
    tally = Tally.from_json(value)
    counts = tuple(getattr(tally, name) for name in COUNTERS)
    return Entry(tally.version, tally.user_id, to_ms(tally.updated_at), counts)


class TallyTable:
    """The newest tally of each key, with sums that are updated with every change."""

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self._max_keys = max_keys
        self._entries: dict[bytes, Entry] = {}
        self._versions: dict[str, _Sum] = {}
        self._users: Counter[str] = Counter()
        self.records: Counter[str] = Counter()
        """`read` and, among those, `unreadable` and `left_out` (new keys when the table was full)."""

    def __len__(self) -> int:
        return len(self._entries)

    def apply(self, key: bytes | None, value: bytes | None) -> None:
        """Replace the tally of a key. An empty value deletes it, as an erasure does."""
        self.records["read"] += 1
        if key is None:
            self.records["unreadable"] += 1
            return
        before = self._entries.get(key)
        if not value:
            self._replace(before, None)
            self._entries.pop(key, None)
            return
        try:
            after = parse_entry(value)
        except Rejected:
            self.records["unreadable"] += 1
            return
        if before is None and len(self._entries) >= self._max_keys:
            self.records["left_out"] += 1
            return
        self._replace(before, after)
        self._entries[key] = after

    def summary(self, version: str | None = None) -> dict[str, Any]:
        """Return the sums as `/tallies` shows them.

        `versions` holds up to `VERSIONS_SHOWN` versions, the last changed first, or only the given one. `totals` covers
        all versions. A mean is null if nothing was rated.
        """
        by_change = sorted(self._versions.items(), key=lambda item: (-item[1].updated_ms, item[0]))
        shown = by_change[:VERSIONS_SHOWN] if version is None else [i for i in by_change if i[0] == version]
        totals = [sum(column) for column in zip(*(s.counts for s in self._versions.values()), strict=True)]
        return {
            "versions": {name: _to_json(total.counts, len(total.users)) for name, total in shown},
            "versions_left_out": len(by_change) - len(shown) if version is None else 0,
            "totals": _to_json(totals or [0] * len(COUNTERS), len(self._users))
            | {"versions": len(by_change)},
        }

    def _replace(self, before: Entry | None, after: Entry | None) -> None:
        if before is not None:
            total = self._versions[before.version]
            total.add(before, -1)
            _count(self._users, before.user_id, -1)
            if not total.users:
                del self._versions[before.version]
        if after is not None:
            total = self._versions.setdefault(after.version, _Sum())
            total.add(after, 1)
            total.updated_ms = max(total.updated_ms, after.updated_ms)
            _count(self._users, after.user_id, 1)


@dataclass(slots=True)
class _Sum:
    counts: list[int] = field(default_factory=lambda: [0] * len(COUNTERS))
    users: Counter[str] = field(default_factory=Counter)
    """Keys per user: a user may have tallies in several partitions."""
    updated_ms: int = 0

    def add(self, entry: Entry, sign: int) -> None:
        for place, count in enumerate(entry.counts):
            self.counts[place] += sign * count
        _count(self.users, entry.user_id, sign)


def _count(users: Counter[str], user_id: str, sign: int) -> None:
    users[user_id] += sign
    if not users[user_id]:
        del users[user_id]


def _to_json(counts: list[int], users: int) -> dict[str, Any]:
    by_name = dict(zip(COUNTERS, counts, strict=True))
    means: dict[str, float | None] = {}
    for kind in FEEDBACK_KINDS:
        if kind.sum_counter is not None and isinstance(kind.counter, str):
            total, count = by_name.pop(kind.sum_counter), by_name[kind.counter]
            means[f"{kind.name}_mean"] = round(total / count, 3) if count else None
    return by_name | means | {"users": users}
