"""How far a run is: to Redis for the console, to the log for people. Losing it loses nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime

import structlog

from shared.adapters import redis_keys
from shared.ports import Cache

TTL_S = 86_400.0
log = structlog.get_logger(__name__)


ProgressCallback = Callable[[int, int], None]
"""Called with (done, total)."""


def silent(done: int, of: int) -> None:
    """Ignore progress."""


class Progress:
    """Tells where a run stands. `now` gives the time of a message."""

    def __init__(
        self, cache: Cache, line: str, run_id: str, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._cache = cache
        self._line = line
        self._run_id = run_id
        self._now = now

    def tell(self, stage: str, step: int = 0, steps: int = 0, **figures: float | str | None) -> None:
        """`figures`: loss, tokens_per_s, eta_s, verdict, version, reason as far as they are known."""
        told = {
            "run_id": self._run_id,
            "stage": stage,
            "step": step,
            "steps": steps,
            "share": round(step / steps, 4) if steps else 0.0,
            **figures,
            "updated_at": self._now().isoformat(),
        }
        self._cache.put(redis_keys.run_progress(self._line), json.dumps(told).encode(), ttl_s=TTL_S)
        log.info("run_progress", **told)

    def counting(self, stage: str) -> Callable[[int, int], None]:
        """A callback (done, of) that tells under this stage."""
        return lambda done, of: self.tell(stage, done, of)
