"""A history: what happens to one partition, in order. The generator makes it, the driver runs it, failures print it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from services.processor.core.batches import BatchLimits
from shared.records import Headers

T0 = 1_760_000_000_000
"""Append time of the first record, in ms since the epoch."""


@dataclass(frozen=True, slots=True)
class Appended:
    """A record on an input topic.

    `at_ms` is the broker's append time. `real_ms` is the true time, which a wrong clock does not change; monotonic time
    follows it. `honest` marks the records whose fate nobody else may change.
    """

    at_ms: int
    real_ms: int
    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    honest: bool = False
    note: str = ""

    def __str__(self) -> str:
        who = "honest" if self.honest else "hostile"
        value = self.value if self.value is None or len(self.value) <= 600 else self.value[:600] + b"..."
        headers = self.headers if sum(len(v) for _, v in self.headers) < 300 else "(long)"
        size = "" if self.value is None else f" ({len(self.value)} bytes)"
        return f"{who} {self.note} at +{self.at_ms - T0} ms: {self.topic} {_short(self.key)} {value!r}{size} {headers}"


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing arrives for a while; `ticks` ticks are due, the last one at `real_ms`."""

    real_ms: int
    ticks: int = 1


@dataclass(frozen=True, slots=True)
class HostClock:
    """From now on the processor's host clock is wrong by `offset_ms`."""

    offset_ms: int


@dataclass(frozen=True, slots=True)
class Replay:
    """An operator replays every dead letter so far."""

    at_ms: int
    real_ms: int


@dataclass(frozen=True, slots=True)
class Stored:
    """The state holds what an earlier release wrote: `change` returns the new value of each key that it changes.

    It is called with the keys and values of `response_id`, which no honest user has anything to do with.
    """

    response_id: str
    change: Callable[[dict[bytes, bytes]], dict[bytes, bytes | None]]
    note: str = ""


Step = Appended | Idle | HostClock | Replay | Stored


@dataclass(frozen=True, slots=True)
class History:
    """Everything that happens to one partition."""

    seed: int
    limits: BatchLimits
    steps: tuple[Step, ...]

    def without_hostile(self) -> History:
        """Return the same history without the hostile records. All others keep their times."""
        kept = (step for step in self.steps if isinstance(step, Idle) or is_honest(step))
        return replace(self, steps=tuple(kept))

    def with_steps(self, steps: Iterable[Step]) -> History:
        """Return the same history with other steps."""
        return replace(self, steps=tuple(steps))

    def __str__(self) -> str:
        lines = (f"  {number:3} {step}" for number, step in enumerate(self.steps))
        return "\n".join([f"seed {self.seed}, {self.limits}:", *lines])


def is_honest(step: Step) -> bool:
    """Return whether a step is an honest record."""
    return isinstance(step, Appended) and step.honest


def _short(key: bytes | None) -> str:
    return repr(key) if key is None or len(key) <= 200 else f"{key[:60]!r}... ({len(key)} bytes)"
