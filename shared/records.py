"""Records read from a topic, and records to produce to one.

They import nothing of Kafka, so code that works with records, and its tests, need no broker.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar, dataclass_transform

Headers = tuple[tuple[str, bytes], ...]

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def value_class(cls: type[T]) -> type[T]:
    """Make `cls` immutable for the type checker and a plain slotted dataclass at run time.

    `frozen=True` makes construction three times slower, and the engine constructs several values per record.
    """
    made: Callable[[type[T]], type[T]] = dataclass(slots=True, unsafe_hash=True)
    return made(cls)


class InPartition(Protocol):
    """Anything that belongs to one partition: a record, a tick."""

    @property
    def partition(self) -> int:
        """Number of the partition."""


@value_class
class Record:
    """One record read from a topic. `timestamp` is the broker's append time, in ms since the epoch."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


@value_class
class Output:
    """One record to produce. If `partition` is None, the key is hashed as JVM clients do (murmur2)."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    partition: int | None = None

    @classmethod
    def to_same_partition_as(
        cls,
        source: InPartition,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
    ) -> Output:
        """Return an output to the partition that `source` came from, as internal topics require."""
        return cls(topic, key, value, headers, source.partition)
