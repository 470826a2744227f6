"""The state as a step sees it: the store beneath, the writes of this slice above, revocable by record."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator

from shared.errors import Oversized
from shared.stream.state_store import ENGINE_KEY_PREFIX, StateStore

_ABSENT = object()
PREFIX_BYTES = 2
"""Scans are over keys that begin alike: to keep these together is all the order that they need."""


class WriteBuffer:
    """`State` over a store that it never writes.

    The engine calls `savepoint` before each record, `undo` where the step raised, and `clear` once `writes`
    is committed and applied to the store, or was aborted. Until then it remembers what it has read: what a slice asks
    for again costs nothing, and what it makes and takes away again is never written.
    """

    def __init__(self, store: StateStore, max_record_bytes: int) -> None:
        self.writes: dict[bytes, bytes | None] = {}
        """What the slice has changed so far: the newest value per key, None for a deletion."""
        self._store = store
        self._max = max_record_bytes
        self._undo: list[tuple[bytes, object]] = []
        self._read: dict[bytes, bytes | None] = {}
        self._groups: defaultdict[bytes, list[bytes]] | None = None
        """The keys of `writes`, and some that are there no longer, by how they begin; from the first scan on."""

    def get(self, key: bytes) -> bytes | None:
        value = self.writes.get(key, _ABSENT)
        if value is _ABSENT:
            value = self._read.get(key, _ABSENT)
            if value is _ABSENT:
                value = self._read[key] = self._store.get(key)
        return value  # type: ignore[return-value]

    def preload(self, found: dict[bytes, bytes | None]) -> None:
        """What the store holds under some keys that this slice will ask for; None: nothing."""
        self._read.update(found)

    def put(self, key: bytes, value: bytes) -> None:
        if len(key) + len(value) > self._max:
            raise Oversized(
                f"State of {len(key) + len(value)} bytes under key {key[:80]!r}: "
                f"one record holds at most {self._max}. Keep it in several keys."
            )
        self._write(key, value)

    def delete(self, key: bytes) -> None:
        before = self.writes.get(key, _ABSENT)
        if self._read.get(key, _ABSENT) is not None or key.startswith(ENGINE_KEY_PREFIX):
            self._write(key, None)
        elif before is not _ABSENT:  # the store has none, so there is nothing to delete there
            self._undo.append((key, before))
            del self.writes[key]

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        if self._groups is None:
            self._groups = defaultdict(list)
            for key in self.writes:
                self._groups[key[:PREFIX_BYTES]].append(key)
        written: list[tuple[bytes, bytes | None]] = []
        for group in sorted(self._groups):
            if start[:PREFIX_BYTES] <= group <= end[:PREFIX_BYTES]:
                keys = sorted({key for key in self._groups[group] if key in self.writes})
                self._groups[group] = keys
                within = keys[bisect_left(keys, start) : bisect_left(keys, end)]
                written += [(key, self.writes[key]) for key in within]
        return _merged(self._store.scan(start, end), written)

    def savepoint(self) -> None:
        """What is written from here on is one record's."""
        self._undo.clear()

    def undo(self) -> None:
        """Back to the last savepoint."""
        for key, before in reversed(self._undo):
            if before is _ABSENT:
                self.writes.pop(key, None)
            else:
                if key not in self.writes and self._groups is not None:
                    self._groups[key[:PREFIX_BYTES]].append(key)
                self.writes[key] = before  # type: ignore[assignment]
        self._undo.clear()

    def clear(self) -> None:
        """Forgets the slice. The dict handed out as `writes` is left as it is."""
        self.writes = {}
        self._read = {}
        self._undo.clear()
        self._groups = None

    def _write(self, key: bytes, value: bytes | None) -> None:
        if key.startswith(ENGINE_KEY_PREFIX):
            raise ValueError("This key is the engine's own.")
        before = self.writes.get(key, _ABSENT)
        self._undo.append((key, before))
        self.writes[key] = value
        if before is _ABSENT and self._groups is not None:
            self._groups[key[:PREFIX_BYTES]].append(key)


def _merged(
    stored: Iterator[tuple[bytes, bytes]], written: list[tuple[bytes, bytes | None]]
) -> Iterator[tuple[bytes, bytes]]:
    """Both in key order; where both have a key, `written` is right."""
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
