"""State of one partition during a slice: uncommitted writes over the store, which a step can undo per record."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator

from shared.errors import Oversized
from shared.stream.state_store import ENGINE_KEY_PREFIX, StateStore

_ABSENT = object()
PREFIX_BYTES = 2
"""Scans cover keys with a common prefix, so written keys are indexed by their first bytes and sorted on demand."""


class WriteBuffer:
    """`State` that collects the writes of a slice and never writes the store. Not thread-safe.

    The engine calls `savepoint` before each record, and `undo` if the step raised. The buffer also caches reads. A key
    that is created and deleted within one slice leaves no write.

    A slice may be processed while the one before it is being committed. Its buffer is then a layer over the other's,
    which must not change any more.
    """

    def __init__(
        self, store: StateStore, max_record_bytes: int, before: dict[bytes, bytes | None] | None = None
    ) -> None:
        """Create an empty buffer. `before` are the writes of the slice being committed, if there is one."""
        self.writes: dict[bytes, bytes | None] = {}
        """The changes of the slice: the newest value of each key, None for a deletion."""
        self._store = store
        self._before = before or {}
        self._before_keys: list[bytes] | None = None
        """Sorted keys of `before`, made by the first scan."""
        self._max = max_record_bytes
        self._undo: list[tuple[bytes, object]] = []
        self._read: dict[bytes, bytes | None] = {}
        self._keys_by_prefix: defaultdict[bytes, list[bytes]] | None = None
        """Index of `writes`, built by the first scan. It may hold keys that are no longer in `writes`."""

    def get(self, key: bytes) -> bytes | None:
        """Return the newest value, or None."""
        value = self.writes.get(key, _ABSENT)
        if value is _ABSENT:
            value = self._read.get(key, _ABSENT)
            if value is _ABSENT:
                value = self._before.get(key, _ABSENT)
                if value is _ABSENT:
                    value = self._store.get(key)
                self._read[key] = value  # type: ignore[assignment]
        return value  # type: ignore[return-value]

    def preload(self, values: dict[bytes, bytes | None]) -> None:
        """Cache values that were read from the store; None for a key that does not exist."""
        self._read.update(values)
        if self._before:
            self._read.update((key, self._before[key]) for key in values.keys() & self._before.keys())

    def put(self, key: bytes, value: bytes) -> None:
        """Write a value. Raises `Oversized` or `ValueError` as `State.put` does."""
        if len(key) + len(value) > self._max:
            raise Oversized(
                f"the state under key {key[:80]!r} has {len(key) + len(value)} bytes; a record holds at most "
                f"{self._max}. Split the state over several keys."
            )
        self._write(key, value)

    def delete(self, key: bytes) -> None:
        """Delete a key; no error if it does not exist."""
        before = self.writes.get(key, _ABSENT)
        if self._read.get(key, _ABSENT) is not None or key.startswith(ENGINE_KEY_PREFIX):
            self._write(key, None)
        elif before is not _ABSENT:  # the store does not have the key, so it needs no deletion there
            self._undo.append((key, before))
            del self.writes[key]

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Return the pairs in a key range, merged from the store and the writes so far."""
        if self._keys_by_prefix is None:
            self._keys_by_prefix = defaultdict(list)
            for key in self.writes:
                self._keys_by_prefix[key[:PREFIX_BYTES]].append(key)
        written: list[tuple[bytes, bytes | None]] = []
        for prefix in sorted(self._keys_by_prefix):
            if start[:PREFIX_BYTES] <= prefix <= end[:PREFIX_BYTES]:
                keys = sorted({key for key in self._keys_by_prefix[prefix] if key in self.writes})
                self._keys_by_prefix[prefix] = keys
                in_range = keys[bisect_left(keys, start) : bisect_left(keys, end)]
                written += [(key, self.writes[key]) for key in in_range]
        stored = self._store.scan(start, end)
        if self._before:
            if self._before_keys is None:
                self._before_keys = sorted(self._before)
            keys = self._before_keys[
                bisect_left(self._before_keys, start) : bisect_left(self._before_keys, end)
            ]
            stored = _merged(stored, [(key, self._before[key]) for key in keys])
        return _merged(stored, written)

    def savepoint(self) -> None:
        """Set the point to which `undo` returns."""
        self._undo.clear()

    def undo(self) -> None:
        """Undo every write since the last savepoint."""
        for key, before in reversed(self._undo):
            if before is _ABSENT:
                self.writes.pop(key, None)
            else:
                if key not in self.writes and self._keys_by_prefix is not None:
                    self._keys_by_prefix[key[:PREFIX_BYTES]].append(key)
                self.writes[key] = before  # type: ignore[assignment]
        self._undo.clear()

    def _write(self, key: bytes, value: bytes | None) -> None:
        if key.startswith(ENGINE_KEY_PREFIX):
            raise ValueError(f"the key {key[:80]!r} is reserved for the engine")
        before = self.writes.get(key, _ABSENT)
        self._undo.append((key, before))
        self.writes[key] = value
        if before is _ABSENT and self._keys_by_prefix is not None:
            self._keys_by_prefix[key[:PREFIX_BYTES]].append(key)


def _merged(
    stored: Iterator[tuple[bytes, bytes]], written: list[tuple[bytes, bytes | None]]
) -> Iterator[tuple[bytes, bytes]]:
    """Merge two sequences in key order. If both have a key, `written` wins."""
    at, count = 0, len(written)
    for key, value in stored:
        while at < count and written[at][0] < key:
            new_key, new_value = written[at]
            at += 1
            if new_value is not None:
                yield new_key, new_value
        if at < count and written[at][0] == key:
            new_value = written[at][1]
            at += 1
            if new_value is not None:
                yield key, new_value
        elif not key.startswith(ENGINE_KEY_PREFIX):
            yield key, value
    for new_key, new_value in written[at:]:
        if new_value is not None:
            yield new_key, new_value
