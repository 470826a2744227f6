"""A history: what happens to one partition, in order. The generator makes it, the driver runs it, failures print it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from services.processor.core.batches import BatchLimits
from shared.records import Headers
from shared.topics import CHAT_RESPONSES, DAY_MS, WINDOW_DAYS

ROOT = "honest"
"""Beginning of the ids of honest responses and events."""
T0 = 1_760_000_000_000
"""Append time of the first record, in ms since the epoch."""

FORGOTTEN_MS = WINDOW_DAYS * DAY_MS


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


_CLAIM = re.compile(rb'"(response|event)_id"\s*:\s*"(%s-[^"]*)"' % ROOT.encode())


def fair(steps: Iterable[Step]) -> Iterator[Step]:
    """Yield the steps without the records that are hostile and first.

    The first content under an id stands, so a hostile record may use the id of an honest response or event only after
    the honest record, and not after the window, when the id is forgotten. (Feedback on an honest response may always
    come, also before the response.)

    Nor does a hostile record come at a later time than the next honest one: the broker's clock is everybody's.
    """
    steps = list(steps)
    latest = _latest_allowed(steps)
    known: dict[bytes, int] = {}
    stream_ms = 0
    for step, at_most in zip(steps, latest, strict=True):
        if not isinstance(step, Appended):
            yield step
            continue
        if not step.honest and step.at_ms > max(stream_ms, at_most):
            continue
        known = {name: at_ms for name, at_ms in known.items() if step.at_ms - at_ms < FORGOTTEN_MS}
        names = _CLAIM.findall(step.value or b"")
        what = b"response" if step.topic == CHAT_RESPONSES.name else b"event"
        claimed = {name for kind, name in names if kind == what}
        if step.honest:
            stream_ms = max(stream_ms, step.at_ms)
            known |= {name: known.get(name, step.at_ms) for name in claimed}
        elif not claimed <= known.keys():
            continue
        yield step


def _latest_allowed(steps: Sequence[Step]) -> list[float]:
    """Return, for each step, the append time of the next honest record; infinity after the last one."""
    latest: list[float] = []
    following = float("inf")
    for step in reversed(steps):
        latest.append(following)
        if isinstance(step, Appended) and step.honest:
            following = step.at_ms
    return latest[::-1]
