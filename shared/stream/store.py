"""Where the state of one partition lives between transactions: a copy of the changelog."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from sortedcontainers import SortedDict

POSITIONS_KEY = b"\x00loopwright.positions"
"""The engine's own key, in changelog and store: input positions and time of the partition."""


class Store(Protocol):
    """An ordered map of bytes for ONE partition, with the changelog position that it reflects.

    Written only with what is committed. One thread. A store that was lost, or whose position does not fit the
    changelog, is wiped and rebuilt: nothing needs to be durable at once, but `apply` must be atomic, so that
    contents and position never disagree, also after a crash.
    """

    def get(self, key: bytes) -> bytes | None:
        """The value, or None if there is none."""

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """`start <= key < end` in key order; lazy. Not to be continued after an `apply`."""

    def apply(self, writes: Mapping[bytes, bytes | None], position: int) -> None:
        """Puts (None: deletes), all or nothing; `position`: the next changelog offset to read."""

    def position(self) -> int | None:
        """The next changelog offset to read; None for a store that holds nothing yet."""

    def keys(self) -> int:
        """How many keys there are; may be an estimate, for people to look at."""

    def close(self) -> None:
        """Releases what it holds open. A durable store keeps its contents. Closing twice is allowed."""

    def wipe(self) -> None:
        """Back to empty, without a position; usable on."""


OpenStore = Callable[[int], Store]
"""Opens the store of a partition, by number, as it was left; one that cannot be read is opened empty."""


class MemoryStore:
    """Forgets with the process; rebuilt from the changelog each time its partition is assigned."""

    def __init__(self, partition: int = 0) -> None:
        self.partition = partition
        self._map: SortedDict = SortedDict()
        self._position: int | None = None

    def get(self, key: bytes) -> bytes | None:
        value: bytes | None = self._map.get(key)
        return value

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        found = self._map
        for key in found.irange(start, end, inclusive=(True, False)):
            yield key, found[key]

    def apply(self, writes: Mapping[bytes, bytes | None], position: int) -> None:
        found = self._map
        for key, value in writes.items():
            if value is None:
                found.pop(key, None)
            else:
                found[key] = value
        self._position = position

    def position(self) -> int | None:
        return self._position

    def keys(self) -> int:
        return len(self._map)

    def close(self) -> None:
        return None

    def wipe(self) -> None:
        self._map.clear()
        self._position = None
