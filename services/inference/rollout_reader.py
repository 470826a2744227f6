"""Thread that reads `model.rollout` and applies its records."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from services.inference.version_swap import Refusal, VersionSwap
from shared.dead_letters import make_dead_letter
from shared.errors import Fatal, LoopwrightError, NotPermitted, Rejected, Retryable, TopicUnavailable
from shared.ports import LogReader, Publisher
from shared.records import Record
from shared.telemetry import DEAD_LETTERED, Readiness
from shared.topics import DEAD_LETTERS, MAX_MESSAGE_BYTES
from shared.versions import RolloutRecord

POLL_S = 0.25
RETRY_S = 15.0
"""Time between two attempts to apply a record that was refused for a temporary reason."""
RECONNECT_S = 1.0
log = structlog.get_logger(__name__)


class RolloutReader:
    """Reader of the topic from its beginning.

    Of the records that exist at start only the newest one is applied, so that a replica does not load every version
    there ever was. The replica is ready once it has been applied or refused. Unreadable records become dead letters.

    Args:
        open_reader: Opens the topic at its beginning; called again after a connection error.
        swap: Applies the records.
        publisher: Publishes dead letters.
        readiness: Its check `rollout` is set here.
        on_fatal: Called with the error that ended the thread.

    """

    def __init__(
        self,
        open_reader: Callable[[], LogReader],
        swap: VersionSwap,
        publisher: Publisher,
        readiness: Readiness,
        on_fatal: Callable[[LoopwrightError], None],
    ) -> None:
        self._open_reader = open_reader
        self._swap = swap
        self._publisher = publisher
        self._readiness = readiness
        self._on_fatal = on_fatal
        self._newest_at_start: RolloutRecord | None = None
        self._caught_up = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rollout", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, waiting at most ten seconds for it."""
        self._stopping.set()
        self._thread.join(10.0)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._follow()
            except Retryable as error:
                if not self._caught_up or isinstance(error, NotPermitted | TopicUnavailable):
                    # Once caught up, an unreachable broker does not stop this replica from serving.
                    self._caught_up = False
                    self._readiness.set("rollout", ok=False, detail=str(error))
                log.warning("rollout_unreadable", error=str(error))
                self._stopping.wait(RECONNECT_S)
            except LoopwrightError as error:
                self._on_fatal(error)
                return
            except Exception as error:
                # If the thread died silently, this replica would serve an old version forever.
                log.exception("rollout_reader_failed")
                self._on_fatal(Fatal(f"cannot follow model.rollout: {type(error).__name__}: {error}"))
                return

    def _follow(self) -> None:
        reader = self._open_reader()
        idle_s = 0.0
        try:
            while not self._stopping.is_set():
                records = reader.poll(POLL_S)
                for record in records:
                    self._handle(record)
                if not self._caught_up and reader.at_end():
                    self._catch_up()
                idle_s = 0.0 if records else idle_s + POLL_S
                if idle_s >= RETRY_S:
                    idle_s = 0.0
                    self._swap.retry()
        finally:
            reader.close()

    def _catch_up(self) -> None:
        if self._newest_at_start is not None:
            self._swap.apply(self._newest_at_start)
        self._caught_up = True
        self._readiness.set("rollout", ok=True, detail=describe_refusals(self._swap.refusals))

    def _handle(self, record: Record) -> None:
        if record.value is None:  # tombstone of a line
            return
        try:
            rollout = RolloutRecord.from_json(record.value)
        except Rejected as error:
            self._send_to_dead_letters(record, error)
            return
        if self._caught_up:
            self._swap.apply(rollout)
        elif self._swap.is_newer(rollout) and (
            self._newest_at_start is None or rollout.seq > self._newest_at_start.seq
        ):
            self._newest_at_start = rollout

    def _send_to_dead_letters(self, record: Record, error: Rejected) -> None:
        # Not waiting for the acknowledgement: the record stays in model.rollout, so nothing is lost, and an
        # unavailable broker must not stop this thread.
        DEAD_LETTERED.labels("inference", error.code).inc()
        log.error("rollout_record_dead", offset=record.offset, code=error.code, error=str(error))
        self._publisher.publish(
            make_dead_letter(DEAD_LETTERS.name, record, error, "inference", MAX_MESSAGE_BYTES)
        )


def describe_refusals(refusals: tuple[Refusal, ...]) -> str:
    """Return the refusals as one line for `/readyz`; empty if there are none."""
    return "; ".join(f"refused {r.version} (seq {r.seq}): {r.message}" for r in refusals)
