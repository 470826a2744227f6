"""Rates and curves from successive samples: rolling counters, and the loss of the run in progress."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from shared.live_status import RunProgress

KEPT_MS: Final = 90_000
RATE_WINDOW_MS: Final = 60_000
GROWING_WINDOW_MS: Final = 4_000
MIN_RATE_SPAN_MS: Final = 5_000
"""A rate over a shorter time would jump."""
MAX_POINTS: Final = 400

COUNTERS: Final = ("responses", "accepted", "batches", "versions", "decisions")
"""The counters on the arrows of the loop diagram, in the order of the loop."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Counters at one moment; None for a counter that could not be read."""

    at_ms: int
    counters: dict[str, int | None]


@dataclass
class RollingCounters:
    """The samples of the last `KEPT_MS` milliseconds."""

    samples: deque[Sample] = field(default_factory=deque)

    def add(self, sample: Sample) -> None:
        """Add a sample and drop those that are too old."""
        self.samples.append(sample)
        while self.samples[0].at_ms < sample.at_ms - KEPT_MS:
            self.samples.popleft()

    def per_minute(self, counter: str) -> float | None:
        """Return how fast a counter grew over the last minute, or None while too little is known."""
        values = self._values(counter, RATE_WINDOW_MS)
        if len(values) < 2 or values[-1][0] - values[0][0] < MIN_RATE_SPAN_MS:
            return None
        return max(0, values[-1][1] - values[0][1]) * 60_000 / (values[-1][0] - values[0][0])

    def growing(self) -> frozenset[str]:
        """Return the counters that have grown within the last seconds."""
        recent = {counter: self._values(counter, GROWING_WINDOW_MS) for counter in COUNTERS}
        return frozenset(
            counter for counter, values in recent.items() if values and values[-1][1] > values[0][1]
        )

    def _values(self, counter: str, window_ms: int) -> list[tuple[int, int]]:
        newest_ms = self.samples[-1].at_ms if self.samples else 0
        return [
            (sample.at_ms, value)
            for sample in self.samples
            if sample.at_ms >= newest_ms - window_ms and (value := sample.counters.get(counter)) is not None
        ]


@dataclass
class LossCurve:
    """Training loss by step, of the newest run."""

    run_id: str | None = None
    points: list[tuple[int, float]] = field(default_factory=list)
    """(step, loss), at most `MAX_POINTS` of them: when there are more, every other point is dropped."""

    def add(self, run: RunProgress | None) -> None:
        """Add the last logged step of a run, if it has a loss. Another run starts a new curve."""
        if run is None:
            return
        if run.run_id != self.run_id:
            self.run_id, self.points = run.run_id, []
        if run.loss is None:
            return
        # A run that resumes from a checkpoint repeats some steps.
        while self.points and self.points[-1][0] >= run.step:
            self.points.pop()
        self.points.append((run.step, run.loss))
        if len(self.points) > MAX_POINTS:
            self.points = [*self.points[:-1:2], self.points[-1]]
