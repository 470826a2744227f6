"""In-memory log and cache for tests that need no Kafka or Redis.

They pass the same contract suites as the real adapters (`tests/contract/test_ports_contract.py`), and can simulate
failures.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future

from shared.adapters.clock import ManualClock
from shared.errors import BrokerUnavailable, Fatal, Fenced, LoopwrightError, Misconfigured, Oversized
from shared.partitioning import partition_for
from shared.ports import Acked, CacheCommand, Clock, Count, Get, Position, PutIfAbsent
from shared.records import Output, Record
from shared.topics import MAX_MESSAGE_BYTES, TOPICS, may_write

POLL_RECORDS = 500


class InMemoryLog:
    """All topics in memory, in append order per partition. Thread-safe.

    Any topic exists: those of `shared/topics.py` with their declared number of partitions, others with `partitions`.
    """

    def __init__(self, partitions: int = 6, clock: Clock | None = None) -> None:
        self._p = partitions
        self._clock = clock or ManualClock()
        self._parts: dict[Position, list[Record | None]] = defaultdict(list)
        self._changed = threading.Condition()
        self._writers: dict[str, int] = defaultdict(int)

    def partitions(self, topic: str) -> int:
        """Return the number of partitions of a topic."""
        return TOPICS[topic].partitions(self._p) if topic in TOPICS else self._p

    def append(self, *records: Output) -> list[Acked]:
        """Append all records atomically; they are visible to readers immediately."""
        with self._changed:
            acked = [self._append(record) for record in records]
            self._changed.notify_all()
        return acked

    def _append(self, record: Output) -> Acked:
        partition = record.partition
        if partition is None:
            partition = partition_for(record.key or b"", self.partitions(record.topic))
        kept = self._parts[record.topic, partition]
        now = self._clock.now_ms()
        kept.append(Record(record.topic, partition, len(kept), now, record.key, record.value, record.headers))
        return Acked(record.topic, partition, len(kept) - 1)

    def records(self, topic: str) -> list[Record]:
        """Return all retained records of a topic, partition by partition, for assertions."""
        with self._changed:
            return [
                record
                for partition in range(self.partitions(topic))
                for record in self._parts[topic, partition]
                if record is not None
            ]

    def trim(self, topic: str, partition: int, before: int) -> None:
        """Delete records below the offset `before`, as retention does."""
        with self._changed:
            kept = self._parts[topic, partition]
            kept[: min(before, len(kept))] = [None] * min(before, len(kept))

    def end(self, position: Position) -> int:
        """Return the next offset of a partition."""
        with self._changed:
            return len(self._parts[position])

    def take(self, position: Position, start: int | None, limit: int) -> list[Record]:
        """Return up to `limit` records from the offset `start` on; None means from the beginning.

        Raises:
            Fatal: if the record at `start` was deleted, as a real reader does.

        """
        with self._changed:
            kept = self._parts[position]
            if start is not None and start < len(kept) and kept[start] is None:
                raise Fatal(f"cannot continue: the log no longer holds {position} offset {start}")
            return [record for record in kept[start or 0 :] if record is not None][:limit]

    def wait_beyond(self, ends: Mapping[Position, int], timeout: float) -> None:
        """Return when any of these partitions grows beyond its given end, or after `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: any(len(self._parts[p]) > end for p, end in ends.items()), timeout)

    def claim(self, identity: str) -> int:
        """Make the caller the only transactional writer of this identity; return its epoch."""
        with self._changed:
            self._writers[identity] += 1
            return self._writers[identity]

    def epoch(self, identity: str) -> int:
        """Return the current epoch of an identity."""
        with self._changed:
            return self._writers[identity]


class InMemoryPublisher:
    """`Publisher` over an `InMemoryLog` that acknowledges immediately.

    Set `failure` to make every later future fail with it. With `lose_acks` the record still arrives, as when an
    acknowledgement is lost.
    """

    def __init__(self, log: InMemoryLog, service: str) -> None:
        self._log = log
        self._service = service
        self._open = True
        self.failure: LoopwrightError | None = None
        self.lose_acks = False

    @property
    def problem(self) -> str | None:
        """Return the set `failure` as text."""
        return None if self.failure is None else str(self.failure)

    def publish(self, record: Output) -> Future[Acked]:
        """Append a record and return a completed future."""
        _check_writer(self._service, record)
        future: Future[Acked] = Future()
        if not self._open:
            future.set_exception(BrokerUnavailable("this publisher is closed"))
        elif _size(record) > MAX_MESSAGE_BYTES:
            future.set_exception(_oversized())
        elif self.failure is not None:
            if self.lose_acks:
                self._log.append(record)
            future.set_exception(self.failure)
        else:
            future.set_result(self._log.append(record)[0])
        return future

    def flush(self, timeout: float) -> int:
        """Return 0; nothing is ever queued."""
        return 0

    def close(self) -> None:
        """Refuse further records."""
        self._open = False


class InMemoryTransactionalPublisher:
    """`TransactionalPublisher` over an `InMemoryLog`. The newest one of an identity fences the earlier ones."""

    def __init__(self, log: InMemoryLog, service: str, identity: str) -> None:
        self._log = log
        self._service = service
        self._identity = identity
        self._epoch = log.claim(identity)
        self.failure: LoopwrightError | None = None

    def publish_all(self, records: Sequence[Output]) -> None:
        """Append all records, or raise before any is appended."""
        for record in records:
            _check_writer(self._service, record)
        if self._log.epoch(self._identity) != self._epoch:
            raise Fenced(f"another process has taken the identity {self._identity}")
        if self.failure is not None:
            raise self.failure
        for record in records:
            if _size(record) > MAX_MESSAGE_BYTES:
                raise _oversized()
        self._log.append(*records)

    def close(self) -> None:
        """Do nothing; there is nothing to release."""


class InMemoryLogReader:
    """`LogReader` over an `InMemoryLog`. `partitions` restricts it, as in `KafkaLogReader`."""

    def __init__(
        self,
        log: InMemoryLog,
        topics: Sequence[str],
        starts: Mapping[Position, int] | None = None,
        *,
        partitions: Collection[int] | None = None,
    ) -> None:
        self._log = log
        self._parts = [
            (topic, partition)
            for topic in topics
            for partition in range(log.partitions(topic))
            if partitions is None or partition in partitions
        ]
        self._next: dict[Position, int] = dict(starts or {})
        self._ends = {position: log.end(position) for position in self._parts}
        self.failure: LoopwrightError | None = None
        """Set it to make `poll` raise; None ends that."""

    def poll(self, timeout: float) -> list[Record]:
        """Return the next records, waiting up to `timeout` seconds for the first."""
        if self.failure is not None:
            raise self.failure
        seen = {position: self._log.end(position) for position in self._parts}
        found = self._take()
        if not found and timeout > 0:
            self._log.wait_beyond(seen, timeout)
            found = self._take()
        return found

    def _take(self) -> list[Record]:
        found: list[Record] = []
        for position in self._parts:
            found += self._log.take(position, self._next.get(position), POLL_RECORDS - len(found))
        for record in found:
            self._next[record.topic, record.partition] = record.offset + 1
        return found

    def at_end(self) -> bool:
        """Return whether everything that was in the log at the start was returned."""
        return self.failure is None and all(
            self._next.get(position, 0) >= end or not self._log.take(position, self._next.get(position), 1)
            for position, end in self._ends.items()
        )

    def positions(self) -> dict[Position, int]:
        """Return the next offset per partition."""
        return dict(self._next)

    def close(self) -> None:
        """Do nothing; there is nothing to release."""


class InMemoryCache:
    """`Cache` that expires by its clock. `away = True` simulates an outage; `wipe()` loses everything."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or ManualClock()
        self._kept: dict[str, tuple[bytes, float]] = {}
        self._lock = threading.Lock()
        self.away = False

    def get(self, key: str) -> bytes | None:
        """Return the value, or None."""
        with self._lock:
            return self._live(key)

    def put(self, key: str, value: bytes, *, ttl_s: float) -> None:
        """Store a value for `ttl_s` seconds."""
        with self._lock:
            if not self.away:
                self._kept[key] = (value, self._clock.now_ms() + ttl_s * 1000)

    def put_if_absent(self, key: str, value: bytes, *, ttl_s: float) -> bytes | None:
        """Store a value if the key is free; return the existing value otherwise."""
        with self._lock:
            found = self._live(key)
            if found is None and not self.away:
                self._kept[key] = (value, self._clock.now_ms() + ttl_s * 1000)
            return found

    def count(self, key: str, *, by: int = 1, ttl_s: float) -> int | None:
        """Add to a counter and return it, or None during an outage."""
        with self._lock:
            if self.away:
                return None
            found = self._live(key)
            until = self._kept[key][1] if found is not None else self._clock.now_ms() + ttl_s * 1000
            total = int(found or 0) + by
            self._kept[key] = (str(total).encode(), until)
            return total

    def alive(self) -> bool:
        """Return whether the cache is available."""
        return not self.away

    def wipe(self) -> None:
        """Lose everything, as a restart of Redis does."""
        with self._lock:
            self._kept.clear()

    def _live(self, key: str) -> bytes | None:
        value, until = self._kept.get(key, (None, 0.0))
        return None if self.away or self._clock.now_ms() >= until else value


class InMemoryAsyncCache:
    """`AsyncCache` over an `InMemoryCache`."""

    def __init__(self, cache: InMemoryCache) -> None:
        self._cache = cache

    async def run(self, commands: Sequence[CacheCommand]) -> list[int | bytes | None]:
        """Execute commands in order."""
        return [self._run(command) for command in commands]

    async def close(self) -> None:
        """Do nothing; there is nothing to release."""

    def _run(self, command: CacheCommand) -> int | bytes | None:
        match command:
            case Count(key, ttl_s, by):
                return self._cache.count(key, by=by, ttl_s=ttl_s)
            case Get(key):
                return self._cache.get(key)
            case PutIfAbsent(key, value, ttl_s):
                self._cache.put_if_absent(key, value, ttl_s=ttl_s)
                return None


def _check_writer(service: str, record: Output) -> None:
    if not may_write(service, record.topic):
        raise Misconfigured(f"{service} may not write {record.topic}")


def _oversized() -> Oversized:
    return Oversized(f"the record exceeds the limit of a topic ({MAX_MESSAGE_BYTES} bytes)")


def _size(record: Output) -> int:
    return len(record.key or b"") + len(record.value or b"")


class InMemoryLogRanges:
    """`LogRanges` over an `InMemoryLog`. Set `failure` to make every call fail with it."""

    def __init__(self, log: InMemoryLog) -> None:
        self._log = log
        self.failure: LoopwrightError | None = None

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        """Return the lowest and the next offset per partition."""
        self._may_fail()
        found = {}
        for partition in range(self._log.partitions(topic)):
            kept, end = self._log.take((topic, partition), None, 1), self._log.end((topic, partition))
            found[partition] = (kept[0].offset if kept else end, end)
        return found

    def since(self, topic: str, at_ms: int) -> dict[int, int]:
        """Return the first offset per partition that is at least as new as `at_ms`."""
        newer: dict[int, int] = {}
        for record in self._log.records(topic):
            if record.timestamp >= at_ms:
                newer.setdefault(record.partition, record.offset)
        return {partition: newer.get(partition, end) for partition, (_, end) in self.bounds(topic).items()}

    def read(self, topic: str, ranges: Mapping[int, tuple[int, int]]) -> Iterator[Record]:
        """Yield the retained records of the ranges."""
        self._may_fail()
        for record in self._log.records(topic):
            start, stop = ranges.get(record.partition, (0, 0))
            if start <= record.offset < stop:
                yield record

    def _may_fail(self) -> None:
        if self.failure is not None:
            raise self.failure
