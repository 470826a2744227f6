"""Where the state of one partition lives between transactions: a copy of the changelog."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, Protocol

from sortedcontainers import SortedDict

from shared.errors import Retryable

ENGINE_KEY_PREFIX = b"\x00loopwright."
"""Keys that begin so are the engine's and the stores'; steps cannot write them, and do not see them."""
POSITIONS_KEY = ENGINE_KEY_PREFIX + b"positions"
"""In changelog and store: input positions and time of the partition."""
AS_OF_KEY = ENGINE_KEY_PREFIX + b"as_of"
"""In the store alone: a moment (ms since epoch, as text) up to which nothing of the changelog is missing in it."""
CHANGELOG_ID_KEY = ENGINE_KEY_PREFIX + b"log"
"""In the store alone: the identity of the changelog that it is a copy of."""


StoreKind = Literal["rocksdb", "memory"]
"""The settings' words: on disk, or gone with the process."""
DEFAULT_CACHE_MB = 64
"""What the stores of a process on disk may hold in memory, all partitions together, unless told otherwise."""


class StoreFailed(Retryable):
    """A store could not be read or written: its disk is full, its folder damaged, another process has it open.

    Close it and open it anew: by then it is what it was after some earlier `apply`, or empty. The log has the rest.
    """

    code = "store_failed"


class StateStore(Protocol):
    """An ordered map of bytes for ONE partition, with the changelog position that it reflects.

    Written only with what is committed. One thread. A store that was lost, or whose position does not fit the
    changelog, is wiped and rebuilt: nothing needs to be durable at once, but `apply` must be atomic, so that
    contents and position never disagree, also after a crash: then both are those of some earlier `apply`.
    Every method but `close` may raise `StoreFailed`.
    """

    def get(self, key: bytes) -> bytes | None:
        """The value, or None if there is none."""

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        """The value of each, in the order of `keys`; quickest where these are sorted. May be called from another thread
        while this one calls `get` or `scan`, never beside a write."""

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """`start <= key < end` in key order; lazy. Not to be continued after an `apply`."""

    def apply(self, writes: Mapping[bytes, bytes | None], position: int) -> None:
        """Puts (None: deletes), all or nothing; `position`: the next changelog offset to read."""

    def changelog_position(self) -> int | None:
        """The next changelog offset to read; None for a store that holds nothing yet."""

    def key_count(self) -> int:
        """How many keys there are; may be an estimate, for people to look at."""

    def size_bytes(self) -> int | None:
        """About how much room the state takes, on disk and in buffers; None where that is not known."""

    def close(self) -> None:
        """Releases what it holds open. A durable store keeps its contents. Closing twice is allowed. Never raises."""

    def wipe(self) -> None:
        """Back to empty, without a position; usable on."""


OpenStore = Callable[[int], StateStore]
"""Opens the store of a partition, by number, as it was left; one that is damaged is opened empty.

Raises `StoreFailed` where it cannot be opened for now."""


class MemoryStore:
    """Forgets with the process; rebuilt from the changelog each time its partition is assigned."""

    def __init__(self, partition: int = 0) -> None:
        self.partition = partition
        self._map: SortedDict = SortedDict()
        self._position: int | None = None

    def get(self, key: bytes) -> bytes | None:
        value: bytes | None = self._map.get(key)
        return value

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        return [self._map.get(key) for key in keys]

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

    def changelog_position(self) -> int | None:
        return self._position

    def key_count(self) -> int:
        return len(self._map)

    def size_bytes(self) -> int | None:
        return None

    def close(self) -> None:
        return None

    def wipe(self) -> None:
        self._map.clear()
        self._position = None
