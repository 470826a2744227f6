"""How far a run is: to Redis for the console, to the log for people. Losing it loses nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import structlog

from shared.adapters import redis_keys
from shared.live_status import RunProgress
from shared.ports import Cache

TTL_S = 86_400.0
log = structlog.get_logger(__name__)


ProgressCallback = Callable[[int, int], None]
"""Called with (done, total)."""


def ignore_progress(done: int, of: int) -> None:
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

    def tell(
        self,
        stage: str,
        step: int = 0,
        steps: int = 0,
        *,
        loss: float | None = None,
        tokens_per_s: float | None = None,
        eta_s: float | None = None,
        verdict: str | None = None,
        version: str | None = None,
        reason: str | None = None,
    ) -> None:
        """Publish the run's progress to Redis and to the log; `RunProgress` documents the fields."""
        progress = RunProgress(
            run_id=self._run_id,
            stage=stage,
            step=step,
            steps=steps,
            share=round(step / steps, 4) if steps else 0.0,
            loss=loss,
            tokens_per_s=tokens_per_s,
            eta_s=eta_s,
            verdict=verdict,
            version=version,
            reason=reason,
            updated_at=self._now(),
        )
        self._cache.put(redis_keys.run_progress(self._line), progress.to_json(), ttl_s=TTL_S)
        log.info("run_progress", **progress.model_dump(mode="json", exclude_none=True))

    def counting(self, stage: str) -> Callable[[int, int], None]:
        """A callback (done, of) that tells under this stage."""
        return lambda done, of: self.tell(stage, done, of)
