"""What the board remembers between two readings: counters for rates, the loss of the run under way. Pure but for time,
which comes with each sample."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from services.console.core.responses import Json
from services.console.pages.formatting import figure, whole

KEPT_MS = 90_000
RATE_MS = 60_000
MOVING_MS = 4_000
LEAST_MS = 5_000
"""No rate is told over less time than this: it would jump."""
MAX_POINTS = 400

FLOWS = ("chats", "accepted", "batches", "versions", "seq")
"""The counters on the diagram's arrows, in the order of the loop."""


@dataclass(frozen=True, slots=True)
class Sample:
    at_ms: int
    counters: dict[str, int | None]


@dataclass
class RollingCounters:
    samples: deque[Sample] = field(default_factory=deque)
    run_id: str | None = None
    losses: list[tuple[int, float]] = field(default_factory=list)
    """(step, loss) of the run, at most `MAX_POINTS`: then every other point goes."""

    def add(self, sample: Sample) -> None:
        self.samples.append(sample)
        while self.samples[0].at_ms < sample.at_ms - KEPT_MS:
            self.samples.popleft()

    def follow(self, run: Json | None) -> None:
        if run is None:
            return
        if run.get("run_id") != self.run_id:
            self.run_id, self.losses = run.get("run_id"), []
        step, loss = whole(run.get("step")), figure(run.get("loss"))
        if step is None or loss is None:
            return
        # A run that goes on from a checkpoint repeats some steps.
        while self.losses and self.losses[-1][0] >= step:
            self.losses.pop()
        self.losses.append((step, loss))
        if len(self.losses) > MAX_POINTS:
            self.losses = [*self.losses[:-1:2], self.losses[-1]]

    def per_minute(self, counter: str) -> float | None:
        """How fast it grew over the last minute; None while too little is known."""
        known = self._known(counter, RATE_MS)
        if len(known) < 2 or known[-1][0] - known[0][0] < LEAST_MS:
            return None
        return max(0, known[-1][1] - known[0][1]) * 60_000 / (known[-1][0] - known[0][0])

    def moving(self) -> frozenset[str]:
        """The counters that have grown within the last seconds."""
        recent = {counter: self._known(counter, MOVING_MS) for counter in FLOWS}
        return frozenset(counter for counter, known in recent.items() if known and known[-1][1] > known[0][1])

    def _known(self, counter: str, within_ms: int) -> list[tuple[int, int]]:
        newest = self.samples[-1].at_ms if self.samples else 0
        return [
            (sample.at_ms, value)
            for sample in self.samples
            if sample.at_ms >= newest - within_ms and (value := sample.counters.get(counter)) is not None
        ]
