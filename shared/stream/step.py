"""Contracts between the engine and a step: a pure function from one partition's state and one record to outputs.

Nothing here imports Kafka, so a step and its tests need no broker.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

from shared.records import Output, Record, value_class


@value_class
class Tick:
    """Notification that time passed in one partition, about once a second while all of its inputs are at their end.

    A partition that has not processed any record yet gets no ticks. A tick is not in the log, so its effects are
    durable only through the state and the outputs.
    """

    partition: int
    timestamp: int
    """Stream time plus the time that passed since the newest record, in ms since the epoch. Use it to flush what has
    waited long enough, never to expire data: after a restart the passed time counts from zero again."""
    stream_ms: int
    """Stream time: the append time of the partition's newest record, in ms since the epoch. It does not grow with
    ticks."""


@value_class
class RereadRequest:
    """Request to read this partition of one of the step's own output topics again. Returned among the outputs.

    Starting with the next slice, the engine passes the records of that topic to the step, from the beginning of the
    log to its end at that time. They are mixed with the input records, a bounded number per slice, and carry the
    partition's stream time as `timestamp`. `RereadComplete` follows the last one. The position is committed with the
    state, so a new owner of the partition continues there.

    A second request for the same topic before `RereadComplete` counts as an exception of the step.
    """

    topic: str


@value_class
class RereadComplete:
    """Notification that the step has received every record of a `RereadRequest`.

    `timestamp` is the partition's stream time, in ms since the epoch.
    """

    topic: str
    partition: int
    timestamp: int


class State(Protocol):
    """Key-value state of one partition, ordered by key bytes.

    The step sees its own writes at once. They become durable with the commit, and are undone if the step raises. A
    step must not keep the state after the call that received it. Not thread-safe.
    """

    def get(self, key: bytes) -> bytes | None:
        """Return the value, or None if the key does not exist."""

    def put(self, key: bytes, value: bytes) -> None:
        """Write a value.

        Raises `Oversized` if key and value together exceed one record, and `ValueError` for a key that is reserved
        for the engine.
        """

    def delete(self, key: bytes) -> None:
        """Delete a key; no error if it does not exist."""

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Return the pairs with `start <= key < end` in key order, as of the call.

        Later writes do not change the result. It is lazy, so the caller decides how much it reads.
        """


class Step(Protocol):
    """Business logic that the engine runs. It must be deterministic: no I/O, no clock, no randomness.

    If it raises on a record, its writes are undone, its outputs are dropped, and the record becomes a dead letter with
    the class and message of the exception. Raise `Rejected` for a record that is at fault; such records never stop
    anything. Too many other exceptions halt the partition. An output counts as an exception of the step if its topic
    is not among the engine's outputs or if it is too large. If the step raises on a `Tick` or `RereadComplete`, its
    writes are undone, the error is logged, and the notification is passed again after a while.

    The result may be a generator. The engine reads it to its end before it produces any output.
    """

    def __call__(self, state: State, record: Record | Tick, /) -> Iterable[Output]:
        """Process one record or tick, and return the outputs."""


class RereadingStep(Protocol):
    """A `Step` that may also return `RereadRequest`, and then receives its own outputs and `RereadComplete`."""

    def __call__(
        self, state: State, record: Record | Tick | RereadComplete, /
    ) -> Iterable[Output | RereadRequest]:
        """Process one record or notification, and return outputs and requests."""


@runtime_checkable
class PrefetchingStep(Protocol):
    """A step that can predict which keys it will read, so that the engine reads many at once."""

    def prefetch_keys(self, record: Record, /) -> Iterable[bytes]:
        """Return keys that the step will `get` for this record, in whatever state it finds.

        Called in another thread: it must be pure, quick, and never raise. A superfluous key costs one read; a missing
        one is read when the step asks for it.
        """
