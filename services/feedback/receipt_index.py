"""Index of the outcomes of feedback events, on this process's disk, built from the log.

It holds what `feedback.events`, `feedback.outcomes` and `dead.letters` say about each event, and the positions up to
which it has read them, written in the same batch: after a crash both are those after some earlier batch. A lost or
damaged index is built again from the beginning of the topics.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import structlog

from services.feedback.core.event_facts import (
    EVENT_KEY_BYTES,
    KIND_OF_TOPIC,
    FactKind,
    event_key,
    fact_of,
    resolve,
)
from services.feedback.core.langfuse_edits import ScoreEvent, decode, encode, score_event_of
from services.feedback.core.receipts import NoOutcome
from shared.errors import Rejected
from shared.events import Outcome
from shared.ports import Position
from shared.records import Record
from shared.stream.state_store import StateStore, StoreFailed
from shared.topics import DAY_MS, FEEDBACK_EVENTS, TOPICS

INDEXED_TOPICS: Final = tuple(KIND_OF_TOPIC)
MIN_TRIMMED: Final = 8
"""Groups of facts that a batch may remove, even if it adds few."""
_FACT: Final = b"f"
"""Prefix of: event key, kind, partition offset -> the fact's value. An event of a Langfuse score has a second entry,
whose event key is a digest of the score's key and the partition; it is removed with the event's own."""
_GROUP: Final = b"g"
"""Prefix of: kind, day, partition, offset -> the keys of all facts that one batch added for that kind and day."""
_POSITION: Final = b"p"
"""Prefix of: topic, 0, partition -> next offset."""
_COUNT: Final = b"n"
_MAX_DAY: Final = 0xFFFF_FFF0
_FACT_KEY_BYTES: Final = 1 + EVENT_KEY_BYTES + 1 + 8
log = structlog.get_logger(__name__)


class ReceiptIndex:
    """Finds the outcome of an event. One thread applies records; any thread may call `find` and `wait_for`.

    Args:
        open_store: Opens the store as it was left; empty if it was lost or damaged.
        max_records: Limit of the records in the index. Above it, the oldest are removed before their time.

    """

    def __init__(self, open_store: Callable[[], StateStore], *, max_records: int) -> None:
        self._open_store = open_store
        self._max_records = max_records
        self._lock = threading.Lock()
        self._moved = threading.Condition()
        self._reached: dict[Position, int] = {}
        self._store: StateStore | None = None
        self._failure: StoreFailed | None = None
        self._count = 0
        self._newest_ms = 0
        """Newest append time of `feedback.events`. Facts expire by it, not by this host's clock."""
        self._trimmed: dict[FactKind, bytes] = {}
        """Kind -> the group removed last, so that a scan does not pass over removed ones."""

    def open(self) -> dict[Position, int]:
        """Open the index, closing it first if it is open, and return the positions to read from.

        Raises:
            StoreFailed: if it cannot be opened at the moment.

        """
        with self._lock:
            self._close()
            store = self._open_store()
            try:
                positions = dict(_positions(store))
                self._count = int(store.get(_COUNT) or b"0")
            except StoreFailed:
                store.close()
                raise
            self._store, self._failure, self._trimmed = store, None, {}
        with self._moved:
            self._reached = dict(positions)
        return positions

    def clear(self) -> None:
        """Remove everything, so that the index is built again."""
        with self._lock:
            self._opened().wipe()
            self._count = 0

    def close(self) -> None:
        """Close the index. It may be opened again."""
        with self._lock:
            self._close()

    def apply(self, records: Sequence[Record], reached: Mapping[Position, int]) -> None:
        """Add what records say. Unreadable ones are logged.

        Args:
            records: the next records, in log order per partition. May be empty.
            reached: the positions of the reader after these records.

        Raises:
            StoreFailed: if they could not be written, or a `find` failed before. Open the index again, and read on
                from the positions that `open` returns.

        """
        writes = self._writes(records)
        with self._lock:
            if self._failure is not None:
                raise self._failure
            store = self._opened()
            self._trim(store, writes)
            if writes:
                store.apply(writes, 0)
        with self._moved:
            self._reached = dict(reached)
            self._moved.notify_all()

    def find(self, response_id: str, event_id: str) -> Outcome | NoOutcome:
        """Return the event's outcome, or why there is none; `NOT_FOUND` if no record of it was read.

        Raises:
            StoreFailed: if the index cannot be read. It is then opened or built again.

        """
        prefix = _FACT + event_key(response_id, event_id)
        with self._lock:
            try:
                return resolve(_facts(self._opened(), prefix), response_id, event_id)
            except StoreFailed as error:
                self._failure = error
                raise

    def find_score(self, score: str) -> list[ScoreEvent]:
        """Return the events of a Langfuse score, in log order per response.

        Args:
            score: the key of the score (`langfuse_edits.score_key`).

        Raises:
            StoreFailed: as for `find`.

        """
        prefix = _FACT + _score_prefix(score)
        with self._lock:
            try:
                return [decode(value) for _, value in self._opened().scan(prefix, prefix + b"\xff" * 4)]
            except StoreFailed as error:
                self._failure = error
                raise

    def wait_for(self, position: Position, offset: int, timeout_s: float) -> bool:
        """Wait until everything before `offset` was applied; return whether it was."""
        with self._moved:
            return self._moved.wait_for(lambda: self._reached.get(position, 0) >= offset, timeout_s)

    def _opened(self) -> StateStore:
        if self._store is None:
            raise StoreFailed("the index of receipts is not open yet: try again in a few seconds")
        return self._store

    def _close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def _writes(self, records: Sequence[Record]) -> dict[bytes, bytes | None]:
        writes: dict[bytes, bytes | None] = {}
        groups: dict[bytes, tuple[bytes, list[bytes]]] = {}
        for record in records:
            writes[_position_key(record)] = b"%d" % (record.offset + 1)
            if record.topic == FEEDBACK_EVENTS.name:
                self._newest_ms = max(self._newest_ms, record.timestamp)
            try:
                fact = fact_of(record)
            except Rejected as error:
                _log_unreadable(record, error)
                continue
            if fact is None:
                continue
            key = _FACT + fact.event_key + bytes((fact.kind,)) + record.offset.to_bytes(8)
            writes[key] = fact.value
            day = _group_prefix(fact.kind) + _day(record.timestamp).to_bytes(4)
            first = day + record.partition.to_bytes(4) + record.offset.to_bytes(8)
            keys = groups.setdefault(day, (first, []))[1]
            keys.append(key)
            if fact.kind is FactKind.ARRIVAL and (scored := score_event_of(record)) is not None:
                score, event = scored
                place = record.partition.to_bytes(4) + bytes((fact.kind,)) + record.offset.to_bytes(8)
                key = _FACT + _score_prefix(score) + place
                writes[key] = encode(event)
                keys.append(key)
        for group, keys in groups.values():
            writes[group] = b"".join(keys)
        self._count += sum(len(keys) for _, keys in groups.values())
        if groups:
            writes[_COUNT] = b"%d" % self._count
        return writes

    def _trim(self, store: StateStore, writes: dict[bytes, bytes | None]) -> None:
        """Add the removal of a few of the facts that are past their topic's retention, or exceed the limit."""
        limit = max(MIN_TRIMMED, 2 * len(writes))
        expired = self._expired(store, limit)
        if not expired and self._count > self._max_records:
            expired = self._oldest(store, limit)
        for group, keys in expired:
            writes[group] = None
            self._trimmed[FactKind(group[1])] = group
            for at in range(0, len(keys), _FACT_KEY_BYTES):
                writes[keys[at : at + _FACT_KEY_BYTES]] = None
            self._count -= len(keys) // _FACT_KEY_BYTES
        if expired:
            writes[_COUNT] = b"%d" % self._count

    def _expired(self, store: StateStore, limit: int) -> list[tuple[bytes, bytes]]:
        """Return groups that are past the retention of their topic."""
        found: list[tuple[bytes, bytes]] = []
        for topic, kind in KIND_OF_TOPIC.items():
            keep_days = TOPICS[topic].keep_days
            assert keep_days is not None, "the retention of every indexed topic is bounded"
            # A segment of the log outlives the retention by a day.
            first_kept = max(0, _day(self._newest_ms) - keep_days - 1)
            found += self._groups_before(store, kind, first_kept, limit - len(found))
        return found

    def _oldest(self, store: StateStore, limit: int) -> list[tuple[bytes, bytes]]:
        """Return groups of the oldest day, arrivals first: without its outcome an event would seem to be pending."""
        firsts = [group for kind in FactKind for group, _ in self._groups_before(store, kind, _MAX_DAY, 1)]
        if not firsts:
            return []
        day = min(int.from_bytes(group[2:6]) for group in firsts)
        # Arrivals of the next day, too: the clock that dates outcomes may be behind the broker's.
        found = self._groups_before(store, FactKind.ARRIVAL, day + 2, limit)
        for kind in (FactKind.OUTCOME, FactKind.DEAD):
            found += self._groups_before(store, kind, day + 1, limit - len(found))
        return found

    def _groups_before(
        self, store: StateStore, kind: FactKind, day: int, limit: int
    ) -> list[tuple[bytes, bytes]]:
        """Return at most `limit` of the groups of earlier days than `day`, oldest first."""
        trimmed = self._trimmed.get(kind)
        start = _group_prefix(kind) if trimmed is None else trimmed + b"\0"
        found = store.scan(start, _group_prefix(kind) + day.to_bytes(4))
        return [pair for pair, _ in zip(found, range(limit), strict=False)]


class BuildProgress:
    """Measures how much of the log the index has read since it was opened."""

    def __init__(self, starts: Mapping[Position, int], ends: Mapping[Position, int]) -> None:
        self._starts = starts
        self._ends = ends
        self._total = sum(max(0, end - starts.get(position, 0)) for position, end in ends.items())
        self._began = time.monotonic()

    def describe(self, reached: Mapping[Position, int]) -> str:
        """Return the progress in words, for `/readyz`."""
        read = sum(
            max(0, min(reached.get(position, 0), end) - self._starts.get(position, 0))
            for position, end in self._ends.items()
        )
        share = read / self._total if self._total else 1.0
        took = time.monotonic() - self._began
        left = f", about {took / share - took:.0f} s left" if share > 0 else ""
        return f"building the index of receipts: {read:,} of {self._total:,} records ({share:.0%}){left}"


def _facts(store: StateStore, prefix: bytes) -> Iterator[tuple[FactKind, bytes]]:
    for key, value in store.scan(prefix, prefix + b"\xff"):
        yield FactKind(key[len(prefix)]), value


def _score_prefix(score: str) -> bytes:
    """Return a digest of a score's key, as long as an event key without the partition."""
    return hashlib.blake2b(b"langfuse-score\0" + score.encode(), digest_size=EVENT_KEY_BYTES - 4).digest()


def _positions(store: StateStore) -> Iterator[tuple[Position, int]]:
    for key, value in store.scan(_POSITION, _POSITION + b"\xff"):
        topic, partition = key[1:].split(b"\0", 1)
        yield (topic.decode(), int.from_bytes(partition)), int(value)


def _position_key(record: Record) -> bytes:
    return _POSITION + record.topic.encode() + b"\0" + record.partition.to_bytes(4)


def _group_prefix(kind: FactKind) -> bytes:
    return _GROUP + bytes((kind,))


def _day(at_ms: int) -> int:
    return min(max(at_ms, 0) // DAY_MS, _MAX_DAY - 1)


def _log_unreadable(record: Record, error: Rejected) -> None:
    log.warning(
        "unreadable_record",
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        error=str(error),
    )
