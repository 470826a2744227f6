"""Status of an engine for other threads: readiness checks, web views, metrics."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

EngineState = Literal["starting", "restoring", "running", "waiting", "halted", "failed", "stopped"]
"""State of an engine.

- starting: not yet in the consumer group.
- restoring: the state is being read from the changelog.
- running: records are processed as they arrive; also while there are none, or no partition is assigned.
- waiting: something outside is missing, for example the broker. The engine continues without help once it is back.
- halted: a person has to act. Partitions that are not halted themselves are processed as usual.
- failed: `Engine.run` has raised.
- stopped: `Engine.run` has returned.
"""

DEAD_LETTER_WINDOW_S = 600.0
"""How long the status mentions a dead letter."""


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """Status of one owned partition, at most half a second old."""

    partition: int
    positions: dict[str, int]
    """Committed position by input topic: the next offset to process."""
    lag: dict[str, int]
    """Offsets from the position to the end of each input, transaction markers included. Unknown topics are absent."""
    keys: int
    """Approximate number of keys in the state."""
    size_bytes: int | None
    """Approximate size of the state on disk and in write buffers, in bytes; None for a store in memory."""
    records: int
    """Records processed since this process owns the partition, dead letters included."""
    dead_letters: int
    time_ms: int
    """Stream time of the partition, in ms since the epoch."""
    last_commit_ms: int | None
    rereads: dict[str, int] = field(default_factory=dict)
    """Next offset to read again, by output topic that has a reread in progress."""
    halted: str | None = None
    """Why the partition is not processed until a person acts."""
    oldest_ms: int | None = None
    """Append time of the oldest record that was read and not processed; None if there is none."""
    problem: str | None = None
    """Why ticks or reread completions are not processed, although records are."""


class EngineStatus:
    """Thread-safe status: the engine's thread writes it, any thread reads it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state: EngineState = "starting"
        self._reason = ""
        self._partitions: tuple[PartitionStatus, ...] = ()
        self._clocks = "ok"
        self._dead_letters: deque[tuple[float, int]] = deque()
        """When records became dead letters, and how many."""
        self._newest_dead_letter = ""
        self._restored = 1.0

    def set_state(self, state: EngineState, reason: str = "") -> bool:
        """Set state and reason together. Returns whether either of them changed."""
        with self._lock:
            changed = state != self._state or reason != self._reason
            self._state, self._reason = state, reason
        return changed

    def set_partitions(self, partitions: tuple[PartitionStatus, ...]) -> None:
        """Replace the status of the owned partitions."""
        with self._lock:
            self._partitions = partitions

    def set_restored(self, ratio: float) -> None:
        """Set the share of the changelog that the restore in progress has read; 1 if there is none."""
        with self._lock:
            self._restored = ratio

    def restored(self) -> float:
        """Return the share set last."""
        with self._lock:
            return self._restored

    def set_clocks(self, text: str) -> bool:
        """Set whether this host's clock and the broker's agree. Returns whether it changed."""
        with self._lock:
            changed = text != self._clocks
            self._clocks = text
        return changed

    def clocks(self) -> str:
        """Return whether this host's clock and the broker's agree, as text for people."""
        with self._lock:
            return self._clocks

    def state(self) -> tuple[EngineState, str]:
        """Return the state and its reason, read together."""
        with self._lock:
            return self._state, self._reason

    def partitions(self) -> tuple[PartitionStatus, ...]:
        """Return the status of the owned partitions."""
        with self._lock:
            return self._partitions

    def add_dead_letters(self, count: int, newest: str, now: float) -> None:
        """Count dead letters of a commit. `newest` describes the last one; `now` is monotonic, in seconds."""
        if not count:
            return
        with self._lock:
            self._forget_old(now)
            if self._dead_letters and now < self._dead_letters[-1][0] + 1.0:
                at, before = self._dead_letters.pop()
                self._dead_letters.append((at, before + count))
            else:
                self._dead_letters.append((now, count))
            self._newest_dead_letter = newest

    def dead_letters(self, now: float) -> str:
        """Return how many records recently became dead letters, with the newest one; empty if there were none."""
        with self._lock:
            self._forget_old(now)
            count = sum(each for _, each in self._dead_letters)
            if not count:
                return ""
            return (
                f"{count} record{'s' * (count != 1)} became dead letters in the last "
                f"{DEAD_LETTER_WINDOW_S / 60:.0f} minutes; newest: {self._newest_dead_letter}"
            )

    def _forget_old(self, now: float) -> None:
        while self._dead_letters and self._dead_letters[0][0] <= now - DEAD_LETTER_WINDOW_S:
            self._dead_letters.popleft()
