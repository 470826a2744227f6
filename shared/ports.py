"""What the services need of the world, as contracts.

Real adapters and fakes pass the same suites, in `tests/contract`.
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
    """Wall time. Pure cores never see one; edges read it and pass what they read."""

    def now_ms(self) -> int:
        """Milliseconds since the epoch."""

    def wait(self, seconds: float) -> None:
        """Blocks for so long (a fake moves its time instead)."""


@dataclass(frozen=True, slots=True)
class Acked:
    """Where an acknowledged record stands in the log."""

    topic: str
    partition: int
    offset: int


class Publisher(Protocol):
    """Writes to the log. Thread-safe.

    Bound to the name of one service: a topic that the table of writers does not give it raises `Misconfigured` at once.
    """

    def publish(self, record: Output) -> Future[Acked]:
        """The future is done only when the log has acknowledged with acks=all, or fails with `BrokerUnavailable`
        after the stated time-out, `Oversized` where the record is too large, or `Overloaded` where the local queue
        is full. A record whose future failed may still arrive: send it again under the same identity."""

    def flush(self, timeout: float) -> int:
        """Waits for what is under way; returns how many are still not acknowledged."""

    def close(self) -> None:
        """Flushes within bounds, then refuses further records."""


class TransactionalPublisher(Protocol):
    """All or nothing, by one writer per identity: a second one fences the first."""

    def publish_all(self, records: Sequence[Output]) -> None:
        """Returns when all are committed. Raises `Fenced` (another process has this identity),
        `BrokerUnavailable` (nothing was written, or the outcome is unknown: read before trying again)."""

    def close(self) -> None: ...


class LogReader(Protocol):
    """Reads partitions from given positions on, committed records only, in offset order per partition.

    One thread. Positions are the caller's to keep: the reader commits none.
    """

    def poll(self, timeout: float) -> list[Record]:
        """Up to a bounded number of records; empty after `timeout` seconds without any."""

    def at_end(self) -> bool:
        """Whether all that was in the log when the reader was opened has been returned by `poll`."""

    def positions(self) -> dict[Position, int]:
        """The next offset per partition: start there to go on after what `poll` returned."""

    def close(self) -> None: ...


class LogRanges(Protocol):
    """Looks up pieces of the log by offset or time, for what is asked now and then. Committed records only.

    Thread-safe; every call ends within a stated time, or raises `BrokerUnavailable`.
    """

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        """Partition -> (the lowest offset that is kept, the next one to be written)."""

    def since(self, topic: str, at_ms: int) -> dict[int, int]:
        """Partition -> the lowest offset of what is as new as that; where nothing is, the next to be written. All
        records before it are older; the first behind it need not be as new, where clocks went back."""

    def read(self, topic: str, ranges: Mapping[int, tuple[int, int]]) -> Iterator[Record]:
        """The records of each partition's `start <= offset < stop` that are kept, in order per partition.

        Lazy: the caller bounds how much it holds."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An artifact that is complete. `put_ms`: when it was put last."""

    digest: str
    put_ms: int
    size: int


class ArtifactStore(Protocol):
    """Immutable folders of files, named by content. Any number of processes may put, read and collect at once.

    Raises `StoreAway` where the store cannot be reached, also after trying again.
    """

    def put(self, folder: Path) -> tuple[str, str]:
        """Copies a folder in whole, then marks it ready. Returns (uri, digest). The same content gives the same uri
        and is stored once; putting it again makes it young again. Raises `BadArtifact` for links, hidden files, or
        files of a refused kind (pickles)."""

    def fetch(self, uri: str, digest: str) -> Path:
        """A local folder to read, every file verified against the manifest and the manifest against `digest`.
        Raises `BadArtifact` (altered, incomplete, not ours) or `NotYet` (not there). What nothing refers to may be
        collected while it is read; see `held`."""

    def held(self, uri: str, digest: str) -> AbstractContextManager[Path]:
        """As `fetch`; the folder stays as it is, whatever is collected, until the block ends."""

    def stored(self) -> list[Stored]:
        """All that is complete, by digest. For collecting."""

    def discard(self, digest: str, unless: Callable[[Stored], bool] = lambda _: False) -> bool:
        """Removes an artifact, unless somebody holds it or `unless`, asked about it as it is when nobody can put it
        any more, says so. Returns whether it went. First it stops being complete, then its files go."""

    def sweep(self, before_ms: int) -> int:
        """Removes what interrupted writers and collectors left, if it is older; returns how many pieces."""


class Cache(Protocol):
    """Redis: fast and losable. An outage reads as a miss, and a write as lost; neither raises. Thread-safe."""

    def get(self, key: str) -> bytes | None: ...

    def put(self, key: str, value: bytes, *, ttl_s: float) -> None: ...

    def put_if_absent(self, key: str, value: bytes, *, ttl_s: float) -> bytes | None:
        """None if `value` was stored (or the cache is away), else what was there already."""

    def count(self, key: str, *, by: int = 1, ttl_s: float) -> int | None:
        """Adds, returns the new count; None where the cache is away. The first addition starts the `ttl_s`."""

    def alive(self) -> bool:
        """For readiness details only."""
