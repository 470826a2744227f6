"""Ports: what the services need from the outside world, as contracts.

Each port has a real adapter and an in-memory one in `shared/adapters`; both pass the same suite in `tests/contract`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from shared.records import Output, Record

Position = tuple[str, int]
"""(topic, partition)"""


@runtime_checkable
class Clock(Protocol):
    """Wall-clock and monotonic time. Pure cores never see a clock; edges read it and pass the time in."""

    def now_ms(self) -> int:
        """Return the wall-clock time in milliseconds since the epoch. It may jump when the host's clock is set."""

    def monotonic(self) -> float:
        """Return seconds since an arbitrary start. It never jumps, so it measures how much time has passed."""

    def wait(self, seconds: float) -> None:
        """Block for `seconds`. A manual clock advances its time instead."""


@dataclass(frozen=True, slots=True)
class Acked:
    """Position of an acknowledged record in the log."""

    topic: str
    partition: int
    offset: int


class Publisher(Protocol):
    """Publishes records to the log. Thread-safe.

    Failures never last: a client that cannot continue is replaced. A publisher is bound to one service. Publishing to
    a topic that `shared/topics.py` does not let this service write raises `Misconfigured` immediately.
    """

    @property
    def problem(self) -> str | None:
        """Why publishing fails at the moment and what to do about it, or None. For readiness checks."""

    def publish(self, record: Output) -> Future[Acked]:
        """Queue a record and return a future that completes when the log has acknowledged it with acks=all.

        The future fails with `BrokerUnavailable` after the adapter's timeout, `NotPermitted` if the service may not
        write the topic, `Oversized` or `RefusedByBroker` if the record is at fault, or `Overloaded` if the local queue
        is full. A record whose future failed may still arrive: publish it again under the same identity.
        """

    def flush(self, timeout: float) -> int:
        """Wait up to `timeout` seconds for queued records; return how many are still not acknowledged."""

    def close(self) -> None:
        """Flush within a bounded time, then refuse further records."""


class TransactionalPublisher(Protocol):
    """Publishes records all or nothing. One process per identity: a second one fences the first."""

    def publish_all(self, records: Sequence[Output]) -> None:
        """Publish `records` in one transaction and return when it is committed.

        Raises:
            Fenced: if another process has taken this identity.
            BrokerUnavailable: if nothing was written or the outcome is unknown. Read the log before trying again.

        """

    def close(self) -> None:
        """Release the producer."""


class LogReader(Protocol):
    """Reads partitions from given positions: committed records only, in offset order per partition.

    Use it from one thread. The caller stores positions; the reader commits none.
    """

    def poll(self, timeout: float) -> list[Record]:
        """Return a bounded number of records, or an empty list if none arrive within `timeout` seconds.

        Raises:
            NotPermitted: if a topic may not be read. Call again: reading continues where it stopped.
            TopicUnavailable: if a topic no longer exists; the same.
            Fatal: if records were deleted before they were read.

        """

    def at_end(self) -> bool:
        """Return whether `poll` has returned everything that was in the log when the reader was opened.

        After `poll` raised, False until reading has reached the end again.
        """

    def positions(self) -> dict[Position, int]:
        """Return the next offset per partition. A reader opened there continues after the last `poll`."""

    def close(self) -> None:
        """Release the consumer."""


class LogRanges(Protocol):
    """Looks up parts of the log by offset or time, for occasional queries. Committed records only.

    Thread-safe. Every call ends within the adapter's timeout or raises `BrokerUnavailable`.
    """

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        """Return, per partition, the lowest retained offset and the next offset to be written."""

    def since(self, topic: str, at_ms: int) -> dict[int, int]:
        """Return, per partition, the lowest offset with an append time of at least `at_ms`.

        Without such a record it is the next offset to be written. All earlier records are older; if clocks went
        backwards, later ones may be older too.
        """

    def read(self, topic: str, ranges: Mapping[int, tuple[int, int]]) -> Iterator[Record]:
        """Yield the retained records of each partition's range `start <= offset < stop`, in order per partition.

        The iterator is lazy, so the caller bounds how much it holds in memory.
        """


@dataclass(frozen=True, slots=True)
class Stored:
    """A complete artifact in the store. `put_ms` is when it was last put, `size` is in bytes."""

    digest: str
    put_ms: int
    size: int


class ArtifactStore(Protocol):
    """Immutable folders of files, named by content. Any number of processes may put, read and collect concurrently.

    Every method raises `StoreUnavailable` if the store cannot be reached after retries.
    """

    def put(self, folder: Path) -> tuple[str, str]:
        """Copy a folder completely, then mark it ready; return (uri, digest).

        Equal content gets an equal URI and is stored once; putting it again refreshes its age.

        Raises:
            BadArtifact: for links, hidden files, or refused file types such as pickles.

        """

    def fetch(self, uri: str, digest: str) -> Path:
        """Return a local folder, with every file verified against the manifest and the manifest against `digest`.

        The garbage collector may remove an unreferenced artifact while it is read; see `held`.

        Raises:
            BadArtifact: if the artifact was altered, is incomplete, or `uri` does not name `digest`.
            NotYet: if it is not in the store.

        """

    def held(self, uri: str, digest: str) -> AbstractContextManager[Path]:
        """Fetch an artifact and keep its folder from being removed until the block ends."""

    def stored(self) -> list[Stored]:
        """Return all complete artifacts, sorted by digest."""

    def discard(self, digest: str, unless: Callable[[Stored], bool] = lambda _: False) -> bool:
        """Remove an artifact and return whether it was removed.

        It is kept if a process holds it, or if `unless` returns True; `unless` sees its state at a moment when no
        process can put it any more. The artifact first becomes incomplete, then its files are deleted.
        """

    def sweep(self, before_ms: int) -> int:
        """Remove leftovers of interrupted writers and collectors older than `before_ms`; return how many."""


class Cache(Protocol):
    """Redis: fast and disposable. Thread-safe.

    During an outage, reads return None and writes are lost; neither raises.
    """

    def get(self, key: str) -> bytes | None:
        """Return the value, or None."""

    def put(self, key: str, value: bytes, *, ttl_s: float) -> None:
        """Store a value for `ttl_s` seconds."""

    def put_if_absent(self, key: str, value: bytes, *, ttl_s: float) -> bytes | None:
        """Store a value if the key is free; return the existing value otherwise.

        Returns None if `value` was stored, or if the cache is unavailable.
        """

    def count(self, key: str, *, by: int = 1, ttl_s: float) -> int | None:
        """Add `by` to a counter and return the new count, or None if the cache is unavailable.

        The first addition starts the counter's lifetime of `ttl_s` seconds.
        """

    def alive(self) -> bool:
        """Return whether Redis answers. For readiness details only."""


@dataclass(frozen=True, slots=True)
class Count:
    """Add `by` to a counter; the result is the new count. The first addition starts its lifetime of `ttl_s` seconds."""

    key: str
    ttl_s: float
    by: int = 1


@dataclass(frozen=True, slots=True)
class Get:
    """Read a value; the result is the value, or None."""

    key: str


@dataclass(frozen=True, slots=True)
class PutIfAbsent:
    """Store a value for `ttl_s` seconds if the key is free. There is no result."""

    key: str
    value: bytes
    ttl_s: float


CacheCommand = Count | Get | PutIfAbsent


class AsyncCache(Protocol):
    """`Cache` for requests on an event loop: several commands in one round trip."""

    async def run(self, commands: Sequence[CacheCommand]) -> list[int | bytes | None]:
        """Execute commands in order and return the result of each.

        During an outage all results are None and writes are lost. It never raises, and never takes longer than the
        adapter's timeout.
        """

    async def close(self) -> None:
        """Release the connection."""
