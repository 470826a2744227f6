"""The system clock, and a manual clock for tests."""

from __future__ import annotations

import threading
import time


class SystemClock:
    """`Clock` that reads the machine's clocks."""

    def now_ms(self) -> int:
        """Return the time in milliseconds since the epoch."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Return seconds since an arbitrary start."""
        return time.monotonic()

    def wait(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)


class ManualClock:
    """`Clock` that moves only when advanced, or by waiting. Thread-safe."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = now_ms
        self._elapsed_s = 0.0
        self._lock = threading.Lock()

    def now_ms(self) -> int:
        """Return the current manual time."""
        with self._lock:
            return self._now_ms

    def monotonic(self) -> float:
        """Return the sum of all advances, in seconds."""
        with self._lock:
            return self._elapsed_s

    def wait(self, seconds: float) -> None:
        """Advance the clock instead of sleeping."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        with self._lock:
            self._now_ms += round(seconds * 1000)
            self._elapsed_s += seconds

    def set_wall(self, now_ms: int) -> None:
        """Set the wall-clock time, as an operator or NTP does; no time passes."""
        with self._lock:
            self._now_ms = now_ms
