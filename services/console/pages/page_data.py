"""Input of the page: everything it shows, as read at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from services.console.core.responses import Json
from shared.live_status import CollectedStatus, RunProgress


@dataclass(frozen=True, slots=True)
class PageData:
    """What the page is made from. Before the log has been read to its end, only `line` and `now` are set."""

    line: str
    now: datetime
    status: Json | None = None
    """Body of `GET /api/status`."""
    collected: CollectedStatus | None = None
    run: RunProgress | None = None
    versions: tuple[Json, ...] = ()
    rollout: tuple[Json, ...] = ()
    rollout_state: Json | None = None
    """Body of `GET /api/rollout/{line}`."""
    dead_letters: tuple[Json, ...] = ()
    responses: int | None = None
    """Responses in the log, over all lines; None if Kafka is not reachable."""
    events_per_minute: float | None = None
    """Rate of feedback events over the last minute; None while too little is known."""
    growing: frozenset[str] = frozenset()
    """The counters (`rates.COUNTERS`) that have grown within the last seconds."""
    losses: tuple[tuple[int, float], ...] = ()
    """(step, loss) of the run."""
