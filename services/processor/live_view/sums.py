"""The live view's sums: what users made of each version, from the newest tally of each key. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from shared.events import Tally, to_ms

FIGURES = ("up", "down", "ratings", "rating_sum", "corrections", "comments", "preferences")
MOST_KEYS = 200_000
"""Keys that a view holds, some 600 bytes each. A key is one user's of one version in one partition."""
VERSIONS_SHOWN = 50


class Entry(NamedTuple):
    """The newest tally of one key."""

    version: str
    user_id: str
    updated_ms: int
    figures: tuple[int, ...]
    """In the order of `FIGURES`."""


def entry_of(value: bytes) -> Entry:
    """Raises `Malformed` or `Oversized` where that is no tally."""
    tally = Tally.from_json(value)
    figures = tuple(getattr(tally, name) for name in FIGURES)
    return Entry(tally.version, tally.user_id, to_ms(tally.updated_at), figures)


@dataclass(slots=True)
class _Sum:
    figures: list[int] = field(default_factory=lambda: [0] * len(FIGURES))
    users: Counter[str] = field(default_factory=Counter)
    """Keys per user: tallies of one user may lie in several partitions."""
    updated_ms: int = 0

    def moved(self, entry: Entry, sign: int) -> None:
        for place, figure in enumerate(entry.figures):
            self.figures[place] += sign * figure
        _count(self.users, entry.user_id, sign)


class Sums:
    """Sums per version, kept up with the table beneath: each change is told once, with what was there before."""

    def __init__(self) -> None:
        self._sums: dict[str, _Sum] = {}
        self._users: Counter[str] = Counter()

    def moved(self, before: Entry | None, after: Entry | None) -> None:
        """The entry of one key was replaced; None: there was none, or is none any more."""
        if before is not None:
            found = self._sums[before.version]
            found.moved(before, -1)
            _count(self._users, before.user_id, -1)
            if not found.users:
                del self._sums[before.version]
        if after is not None:
            found = self._sums.setdefault(after.version, _Sum())
            found.moved(after, 1)
            _count(self._users, after.user_id, 1)
            found.updated_ms = max(found.updated_ms, after.updated_ms)

    def shown(self, version: str | None = None) -> dict[str, Any]:
        """`versions`: those last changed first, `VERSIONS_SHOWN` at most, or the one asked for. `totals`: of all
        versions. A mean is null where nothing was rated."""
        newest = sorted(self._sums.items(), key=lambda item: (-item[1].updated_ms, item[0]))
        listed = newest[:VERSIONS_SHOWN] if version is None else [i for i in newest if i[0] == version]
        figures = [sum(column) for column in zip(*(s.figures for s in self._sums.values()), strict=True)]
        return {
            "versions": {name: _words(found.figures, len(found.users)) for name, found in listed},
            "versions_left_out": len(newest) - len(listed) if version is None else 0,
            "totals": _words(figures or [0] * len(FIGURES), len(self._users)) | {"versions": len(newest)},
        }


def _count(users: Counter[str], user_id: str, sign: int) -> None:
    users[user_id] += sign
    if not users[user_id]:
        del users[user_id]


def _words(figures: list[int], users: int) -> dict[str, Any]:
    named = dict(zip(FIGURES, figures, strict=True))
    total = named.pop("rating_sum")
    mean = round(total / named["ratings"], 3) if named["ratings"] else None
    return named | {"rating_mean": mean, "users": users}
