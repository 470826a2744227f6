"""Port of a partition's local state, which is a copy of its changelog; and a store in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, Protocol

from sortedcontainers import SortedDict

from shared.errors import Retryable

ENGINE_KEY_PREFIX = b"\x00loopwright."
"""Prefix of the keys of the engine and the stores. Steps can neither write nor see them."""
POSITIONS_KEY = ENGINE_KEY_PREFIX + b"positions"
"""Key of the partition's `Positions`, in the changelog and in the store."""
AS_OF_KEY = ENGINE_KEY_PREFIX + b"as_of"
"""Key, in the store only, of the last time at which the store was complete (ms since the epoch, as text)."""
CHANGELOG_ID_KEY = ENGINE_KEY_PREFIX + b"log"
"""Key, in the store only, of the id of the changelog topic that the store is a copy of."""


StoreKind = Literal["rocksdb", "memory"]
"""Values of the settings that choose a store: on disk, or in memory only."""
DEFAULT_CACHE_MB = 64
"""Default block cache of the on-disk stores of a process, all partitions together."""


class StoreFailed(Retryable):
    """A store cannot be read or written: the disk is full, the files are damaged, or another process has it open.

    Close the store and open it again. It then holds the state after some earlier `apply`, or nothing; the changelog has
    the rest.
    """

    code = "store_failed"


class StateStore(Protocol):
    """Ordered map of bytes for one partition, together with the changelog position that it reflects.

    The engine writes only committed state. If a store is lost or does not fit the changelog, the engine wipes and
    rebuilds it, so writes need not be durable at once. But `apply` must be atomic: also after a crash, contents and
    position are both those after some earlier `apply`.

    Not thread-safe, except for `get_many`. Every method except `close` may raise `StoreFailed`.
    """

    def get(self, key: bytes) -> bytes | None:
        """Return the value, or None if the key does not exist."""

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        """Return the value of each key, in the order of `keys`; fastest if they are sorted.

        Another thread may call this during a `get` or `scan`, but never during a write.
        """

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Return the pairs with `start <= key < end` in key order. Lazy; invalid after the next `apply`."""

    def apply(self, writes: Mapping[bytes, bytes | None], position: int) -> None:
        """Write all values, or none (None deletes the key), with the next changelog offset to read."""

    def changelog_position(self) -> int | None:
        """Return the next changelog offset to read, or None if nothing was ever applied."""

    def key_count(self) -> int:
        """Return the approximate number of keys, for status views."""

    def size_bytes(self) -> int | None:
        """Return the approximate size on disk and in write buffers, in bytes, or None if unknown."""

    def close(self) -> None:
        """Release all resources; a durable store keeps its contents. May be called twice. Never raises."""

    def wipe(self) -> None:
        """Remove all contents and the position. The store remains open."""


OpenStore = Callable[[int], StateStore]
"""Opens the store of a partition, by number, as it was left. A damaged store is opened empty.

Raises `StoreFailed` if it cannot be opened at the moment."""


class MemoryStore:
    """`StateStore` in memory. It is rebuilt from the changelog whenever its partition is assigned."""

    def __init__(self, partition: int = 0) -> None:
        self.partition = partition
        self._map: SortedDict = SortedDict()
        self._position: int | None = None

    def get(self, key: bytes) -> bytes | None:
        """Return the value, or None."""
        value: bytes | None = self._map.get(key)
        return value

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        """Return the value of each key."""
        return [self._map.get(key) for key in keys]

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the pairs in a key range."""
        contents = self._map
        for key in contents.irange(start, end, inclusive=(True, False)):
            yield key, contents[key]

    def apply(self, writes: Mapping[bytes, bytes | None], position: int) -> None:
        """Write values and position."""
        contents = self._map
        for key, value in writes.items():
            if value is None:
                contents.pop(key, None)
            else:
                contents[key] = value
        self._position = position

    def changelog_position(self) -> int | None:
        """Return the next changelog offset to read."""
        return self._position

    def key_count(self) -> int:
        """Return the number of keys."""
        return len(self._map)

    def size_bytes(self) -> int | None:
        """Return None: the size in memory is unknown."""
        return None

    def close(self) -> None:
        """Do nothing: there are no resources to release."""

    def wipe(self) -> None:
        """Remove all contents and the position."""
        self._map.clear()
        self._position = None
