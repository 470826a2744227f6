"""What the page is made from: everything known at one moment, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from services.console.core.responses import Json


@dataclass(frozen=True, slots=True)
class PageData:
    """`status`, `versions`, `rollout` and `letters` as `views` gives them; None and empty before the log was read."""

    line: str
    now: datetime
    status: Json | None = None
    versions: tuple[Json, ...] = ()
    rollout: tuple[Json, ...] = ()
    letters: tuple[Json, ...] = ()
    chats: int | None = None
    """Responses in the log, over all lines."""
    per_minute: float | None = None
    """Feedback events over the last minute."""
    moving: frozenset[str] = frozenset()
    losses: tuple[tuple[int, float], ...] = ()
