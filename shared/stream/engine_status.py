"""What an engine shows of itself to other threads: web views, readiness, metrics."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Literal

EngineState = Literal["starting", "restoring", "running", "waiting", "halted", "failed", "stopped"]
"""starting: not yet in the group; restoring: state is read from the changelog; running: also with no partition
assigned, or nothing to do; waiting: for something outside, goes on by itself; halted: too many dead letters, a person
must act; failed: `run` has raised; stopped: `run` has returned."""


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """One owned partition, as of the last half second."""

    partition: int
    positions: dict[str, int]
    """The next offset per input topic, as committed."""
    lag: dict[str, int]
    """Records, markers included, that each input holds beyond its position; absent while that is not yet known."""
    keys: int
    """About how many the state has."""
    size_bytes: int | None
    """About how much room it takes; None for one in memory."""
    records: int
    """Processed since this process owns the partition; `dead_letters` among them."""
    dead_letters: int
    time_ms: int
    """How far the partition's time has come, in ms since the epoch."""
    last_commit_ms: int | None
    rereads: dict[str, int] = field(default_factory=dict)
    """The next offset per output topic that the step is being shown again."""


class EngineStatus:
    """Written by the engine's thread, read by any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state: EngineState = "starting"
        self._reason = ""
        self._partitions: tuple[PartitionStatus, ...] = ()

    def set_state(self, state: EngineState, reason: str = "") -> bool:
        """Whether that is news."""
        with self._lock:
            news = state != self._state or reason != self._reason
            self._state, self._reason = state, reason
        return news

    def set_partitions(self, partitions: tuple[PartitionStatus, ...]) -> None:
        """Replaces what was shown of the partitions."""
        with self._lock:
            self._partitions = partitions

    def state(self) -> tuple[EngineState, str]:
        """State and reason, as they belong together."""
        with self._lock:
            return self._state, self._reason

    def partitions(self) -> tuple[PartitionStatus, ...]:
        """What was last shown."""
        with self._lock:
            return self._partitions
