"""Time of a partition: ticks while it is idle, and the comparison of this host's clock with the broker's. Pure.

Stream time is the append time of a partition's newest record, so only the broker's clock moves it. Between records a
tick adds the time that passed on the host's monotonic clock, which does not jump. The host's wall clock is only
compared with the broker's: if they disagree, one of them is wrong, and ticks stop until they agree again.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_TICK_STEP_S = 60.0
"""Most time that a single tick adds, however long ago the previous one was."""
MEASURE_INTERVAL_S = 30.0
"""Seconds from one measurement to the next while the clocks disagree."""


@dataclass(slots=True)
class IdleTime:
    """Time that passed in a partition since its newest record, on the monotonic clock."""

    elapsed_s: float = 0.0
    _last: float | None = None

    def restart(self, now: float) -> None:
        """Count from zero again, because records arrived."""
        self.elapsed_s, self._last = 0.0, now

    def advance(self, now: float) -> int:
        """Add the time since the last call, at most `MAX_TICK_STEP_S`, and return the sum in ms."""
        if self._last is not None:
            self.elapsed_s += min(max(0.0, now - self._last), MAX_TICK_STEP_S)
        self._last = now
        return round(self.elapsed_s * 1000)


@dataclass(slots=True)
class ClockComparison:
    """Difference between this host's wall clock and the clock of the broker that leads a partition's changelog.

    A commit measures it: the broker appends the partition's positions between the moment they are sent and the moment
    they are acknowledged. From then on the monotonic clock says what time it is at the broker, so a jump of the wall
    clock shows at once, and so does its correction.
    """

    limit_ms: int
    """The clocks disagree if they differ by more than this."""
    measured: bool = False
    """Whether a commit was acknowledged."""
    _broker_offset_ms: float | None = None
    """Broker time minus monotonic time. None if the changelog does not hold append times."""
    _uncertainty_ms: float = 0.0
    _measured_at: float = 0.0

    def measure(self, append_ms: int | None, sent: float, acknowledged: float) -> None:
        """Note an acknowledged commit, with its append time (None if unknown) and monotonic times in seconds."""
        self.measured, self._measured_at = True, acknowledged
        if append_ms is None:
            self._broker_offset_ms = None
            return
        self._broker_offset_ms = append_ms - (sent + acknowledged) * 500
        self._uncertainty_ms = (acknowledged - sent) * 500

    def difference_ms(self, wall_ms: int, now: float) -> int | None:
        """Return how far this host's clock is ahead of the broker's, negative if behind; None if unknown."""
        if self._broker_offset_ms is None:
            return None
        difference = wall_ms - now * 1000 - self._broker_offset_ms
        certain = max(0.0, abs(difference) - self._uncertainty_ms)
        return round(certain if difference > 0 else -certain)

    def disagree(self, wall_ms: int, now: float) -> bool:
        """Return whether the clocks are known to differ by more than the limit."""
        return abs(self.difference_ms(wall_ms, now) or 0) > self.limit_ms

    def must_measure(self, wall_ms: int, now: float) -> bool:
        """Return whether to commit for a measurement: before the first tick, and now and then while they disagree."""
        if not self.measured:
            return True
        return self.disagree(wall_ms, now) and now >= self._measured_at + MEASURE_INTERVAL_S

    def allows_tick(self, wall_ms: int, now: float) -> bool:
        """Return whether the partition may tick."""
        return self.measured and not self.disagree(wall_ms, now)
