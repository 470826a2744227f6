"""Progress of a run: to Redis for the console, and to the log. It may be lost at any time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import structlog

from shared.adapters import redis_keys
from shared.live_status import RunProgress
from shared.ports import Cache

TTL_S: Final = 86_400.0
log = structlog.get_logger(__name__)

ProgressCallback = Callable[[int, int], None]
"""Called with (done, total)."""


def ignore_progress(done: int, total: int) -> None:
    """Ignore progress."""


class Progress:
    """Publisher of one run's progress. `now` returns the time of a message."""

    def __init__(
        self,
        cache: Cache,
        line: str,
        run_id: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        *,
        prefix: str = "",
    ) -> None:
        """Prepare the publisher. `prefix` precedes each stage, such as `control: `."""
        self._cache = cache
        self._line = line
        self._run_id = run_id
        self._now = now
        self._prefix = prefix

    def with_prefix(self, prefix: str) -> Progress:
        """Return a publisher of the same run whose stages have a prefix."""
        return Progress(self._cache, self._line, self._run_id, self._now, prefix=prefix)

    def report(
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
            stage=self._prefix + stage,
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

    def callback(self, stage: str) -> ProgressCallback:
        """Return a callback that reports progress within `stage`."""
        return lambda done, total: self.report(stage, done, total)
