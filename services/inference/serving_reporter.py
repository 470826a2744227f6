"""Thread that reports on `model.serving` what this replica serves, after each change and regularly."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from services.inference.version_registry import VersionRegistry
from services.inference.version_swap import Refusal
from shared.cloudevents import cloudevent
from shared.errors import LoopwrightError
from shared.events import from_ms
from shared.ports import Clock, Publisher
from shared.records import Output
from shared.serving import REPORT_INTERVAL_S, RefusedVersion, ServingReport
from shared.topics import MODEL_SERVING

MAX_MESSAGE = 1024
log = structlog.get_logger(__name__)


class ServingReporter:
    """Reporter of one replica. Its reports may be lost: they are repeated every `REPORT_INTERVAL_S`.

    Args:
        replica: Name of this process among the replicas; the same after a restart, if possible.
        registry: Decides which versions answer.
        refusals: Returns the versions that were refused.
        is_ready: Returns whether this replica answers requests. Before that it reports nothing.
        publisher: Publishes the reports.
        clock: Dates them.

    """

    def __init__(
        self,
        replica: str,
        registry: VersionRegistry,
        refusals: Callable[[], tuple[Refusal, ...]],
        is_ready: Callable[[], bool],
        publisher: Publisher,
        clock: Clock,
    ) -> None:
        self._replica = replica
        self._registry = registry
        self._refusals = refusals
        self._is_ready = is_ready
        self._publisher = publisher
        self._clock = clock
        self._changed = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="serving-reports", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Report now, because something has changed. Can be called from any thread."""
        self._changed.set()

    def stop(self) -> None:
        """Stop the thread and report that this replica has ended."""
        self._stopping = True
        self._changed.set()
        self._thread.join(5.0)
        self._publish(Output(MODEL_SERVING.name, self.report().key.encode(), None))

    def report(self) -> ServingReport:
        """Return what this replica serves now."""
        state = self._registry.state()
        return ServingReport(
            line=self._registry.line,
            replica=self._replica,
            seq=state.record.seq if state.record is not None else None,
            stable=state.stable.version,
            canary=state.canary.version if state.canary is not None else None,
            share=state.share,
            refused=tuple(
                RefusedVersion(
                    version=each.version, seq=each.seq, code=each.code, message=each.message[:MAX_MESSAGE]
                )
                for each in self._refusals()
            ),
            reported_at=from_ms(self._clock.now_ms()),
        )

    def _run(self) -> None:
        while not self._stopping:
            ready = self._is_ready()
            if ready:
                self._report_now()
            self._changed.wait(REPORT_INTERVAL_S if ready else 0.2)
            self._changed.clear()

    def _report_now(self) -> None:
        try:
            self._publish(self._record(self.report()))
        except Exception:  # a thread that ended would leave an old report standing
            log.exception("serving_report_failed")

    def _record(self, report: ServingReport) -> Output:
        return cloudevent(
            MODEL_SERVING,
            report.key,
            report,
            source="inference",
            ce_id=f"{report.key}/{report.reported_at.isoformat()}",
            at=report.reported_at,
        )

    def _publish(self, record: Output) -> None:
        # Not waiting for the acknowledgement: a report that is lost is repeated.
        try:
            self._publisher.publish(record)
        except LoopwrightError as error:
            log.warning("serving_not_reported", code=error.code, error=str(error))
