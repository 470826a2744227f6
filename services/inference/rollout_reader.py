"""Thread that reads `model.rollout` and applies its records."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

import structlog

from services.inference.last_record import LastRecord
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
FALLBACK_S = 10.0
"""Time after the start for which Kafka may be unreachable before the last known record is served."""
log = structlog.get_logger(__name__)


class RolloutReader:
    """Reader of the topic from its beginning.

    Of the records that exist at start only the newest one is applied, so that a replica does not load every version
    there ever was. The replica is ready once it has been applied or refused. Unreadable records become dead letters.

    If Kafka is not reachable for `FALLBACK_S` seconds after the start, the record that this replica served last is
    applied instead, and the replica is ready with it.

    Args:
        open_reader: Opens the topic at its beginning; called again after a connection error.
        swap: Applies the records.
        publisher: Publishes dead letters.
        readiness: Its check `rollout` is set here.
        on_fatal: Called with the error that ended the thread.
        last: The record that this replica served last.

    """

    def __init__(
        self,
        open_reader: Callable[[], LogReader],
        swap: VersionSwap,
        publisher: Publisher,
        readiness: Readiness,
        on_fatal: Callable[[LoopwrightError], None],
        last: LastRecord | None = None,
    ) -> None:
        self._open_reader = open_reader
        self._swap = swap
        self._publisher = publisher
        self._readiness = readiness
        self._on_fatal = on_fatal
        self._last = last
        self._fallback_at = math.inf
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
        self._fallback_at = time.monotonic() + FALLBACK_S
        while not self._stopping.is_set():
            try:
                self._follow()
            except Retryable as error:
                is_unreachable = not isinstance(error, NotPermitted | TopicUnavailable)
                # Once caught up, an unreachable broker does not stop this replica from serving.
                if not is_unreachable or not (self._caught_up or self._serve_last(str(error))):
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

    def _serve_last(self, problem: str) -> bool:
        """Serve the record that this replica served last, once it is time for that. Return whether it is served."""
        record = (
            self._last.read() if self._last is not None and time.monotonic() >= self._fallback_at else None
        )
        if record is None:
            return False
        if self._swap.is_newer(record):
            self._swap.apply(record)
        else:
            self._swap.retry()
        served = (
            f"Kafka is unreachable, so rollout record {record.seq} is served, the last one known: {problem}"
        )
        refused = describe_refusals(self._swap.refusals)
        self._readiness.set("rollout", ok=True, detail=f"{refused}; {served}" if refused else served)
        return True

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
