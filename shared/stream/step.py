"""What a step is: a pure function from the state of one partition and one record to outputs.

The words of the engine's port. They import nothing of Kafka, so a step and its tests need no broker.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

from shared.records import Output, Record, value_class


@value_class
class Tick:
    """Time passing in one partition: fed about once a second while all its inputs are at their end.

    `timestamp`: ms since the epoch, never less than that of an earlier record or tick of the partition.
    A tick is not in the log: what it changes is durable only through the state and the outputs.
    """

    partition: int
    timestamp: int


@value_class
class RereadRequest:
    """Said among outputs: the step wants to see this partition of one of its own output topics again.

    From the next slice on the engine feeds what the log holds of it, from its beginning to what its end is by then,
    as records of that topic beside those of the inputs, a bounded number in each slice, and at last `Through`. Their
    `timestamp` is the partition's time, not that of their append. How far it has come is committed with the state, so
    a new owner goes on with it. To say it again for the same topic before `Through` came counts as raising.
    """

    topic: str


@value_class
class RereadComplete:
    """All of what a `Reread` asked for has been fed. `timestamp`: the partition's time, as of a tick."""

    topic: str
    partition: int
    timestamp: int


class State(Protocol):
    """The state of ONE partition, ordered by key bytes.

    What the step writes is visible to it at once, durable only with the commit, undone if the step raises.
    Not thread-safe; valid only during the call that it was given to.
    """

    def get(self, key: bytes) -> bytes | None:
        """The value, or None if there is none."""

    def put(self, key: bytes, value: bytes) -> None:
        """Raises `Oversized` where key and value do not fit one record, `ValueError` for the engine's key."""

    def delete(self, key: bytes) -> None:
        """No error if there is nothing to delete."""

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """`start <= key < end` in key order, as of the call: writes made while iterating do not show.

        Lazy: the caller bounds how much it reads.
        """


class Step(Protocol):
    """Deterministic: no I/O, no clock, no randomness.

    Raising `Rejected` (or anything else) makes the record a dead letter with that class and message; the
    state it wrote is undone and its outputs are dropped. The outputs may be a generator; it is read to its
    end before any is produced. An output to a topic that the engine was not given, or too large for a record,
    counts as raising.
    A tick or a `Through` that raises is undone too, logged, and fed again; several in a row halt the engine.
    """

    def __call__(self, state: State, record: Record | Tick, /) -> Iterable[Output]:
        """What follows from `record`, given `state`."""


class RereadingStep(Protocol):
    """A `Step` that may ask to see its output again, and is told when it has seen all of it."""

    def __call__(self, state: State, record: Record | Tick | RereadComplete, /) -> Iterable[Output | RereadRequest]:
        """What follows from `record`, given `state`."""


@runtime_checkable
class PrefetchingStep(Protocol):
    """A step that can tell which keys it will read, before it is called: they are then read many at a time."""

    def prefetch_keys(self, record: Record, /) -> Iterable[bytes]:
        """Some of the keys that `record` will make it `get`, whatever the state. Pure, quick, and never raises; called
        in another thread. A key too many costs a read, one left out nothing."""
