"""Follow topics from their beginning in a thread, to keep a service's in-memory view of them current."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import structlog

from shared.errors import LoopwrightError, Retryable
from shared.ports import LogReader
from shared.records import Record
from shared.telemetry import Readiness

POLL_S = 0.1
REOPEN_S = 1.0
STOP_S = 10.0
log = structlog.get_logger(__name__)


class TopicFollower:
    """Thread that reads topics until `stop()` and passes the records to `apply`, in log order.

    `apply` is also called without records, a few times per second while none arrive.

    It reports to `readiness` under the name `check`: ready once it has applied everything that was in the log when it
    started. While Kafka is unavailable at the start, or a topic cannot be read later, it retries, and the check fails
    with the reason. After a `Retryable` from `apply` it opens a new reader. Any other error, from the log or from
    `apply`, stops it: the check fails and `on_failure` is called, because the view would no longer be current.
    """

    def __init__(
        self,
        check: str,
        open_reader: Callable[[], LogReader],
        apply: Callable[[Sequence[Record]], None],
        readiness: Readiness,
        on_failure: Callable[[], None],
    ) -> None:
        self._check = check
        self._open_reader = open_reader
        self._apply = apply
        self._readiness = readiness
        self._on_failure = on_failure
        self._stopping = threading.Event()
        self._caught_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"follows-{check}", daemon=True)
        self.failed = False

    @property
    def caught_up(self) -> bool:
        """Whether everything that was in the log at the start has been applied, and the log can be read."""
        return self._caught_up.is_set()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and wait up to `STOP_S` seconds for it to end."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_S)

    def _run(self) -> None:
        try:
            while (reader := self._opened()) is not None:
                self._follow(reader)
        except LoopwrightError as error:
            log.exception("follower_failed", check=self._check, code=error.code)
        finally:
            if not self._stopping.is_set():
                self.failed = True
                self._caught_up.clear()
                self._readiness.set(
                    self._check, False, "stopped by an error: see the log, then restart the service"
                )
                self._on_failure()

    def _opened(self) -> LogReader | None:
        while not self._stopping.is_set():
            try:
                return self._open_reader()
            except Retryable as error:
                self._readiness.set(self._check, False, f"cannot read the log yet: {error}")
                self._stopping.wait(REOPEN_S)
        return None

    def _follow(self, reader: LogReader) -> None:
        """Follow until `stop()`, or until records could not be applied at the moment."""
        try:
            while not self._stopping.is_set():
                try:
                    records = reader.poll(POLL_S)
                except Retryable as error:
                    self._pause(f"cannot read the log: {error}")
                    continue
                try:
                    self._apply(records)
                except Retryable as error:
                    log.warning("follower_reopens", check=self._check, code=error.code, error=str(error))
                    self._pause(str(error))
                    return
                if not self.caught_up and reader.at_end():
                    self._caught_up.set()
                    self._readiness.set(self._check, True)
        finally:
            reader.close()

    def _pause(self, reason: str) -> None:
        self._caught_up.clear()
        self._readiness.set(self._check, False, reason)
        self._stopping.wait(REOPEN_S)
