"""Response records on their way to `chat.responses`: by the spool, or before the last byte (`delivery`)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Protocol

import structlog

from services.inference.spool import Spool, SpooledRecord
from shared.errors import BrokerUnavailable, LoopwrightError, Overloaded, Rejected
from shared.ports import Acked, Publisher
from shared.records import Output
from shared.telemetry import SPOOL_LOST, Readiness

SEND_RECORDS = 100
ACK_S = 30.0
RETRY_S = 1.0
Then = Callable[[LoopwrightError | None], None]
log = structlog.get_logger(__name__)


class ResponsePublisher(Protocol):
    def keep(self, record: Output, then: Then) -> None:
        """Calls `then` exactly once, from any thread: with None when the answer may end, or with why it may
        not. Never raises."""


class StrictResponsePublisher:
    """`delivery: strict`: an answer ends only when Kafka has its record. `publisher` bounds the wait."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    def keep(self, record: Output, then: Then) -> None:
        def done(future: Future[Acked]) -> None:
            error = future.exception()
            if error is None:
                then(None)
                return
            log.error("response_not_recorded", error=str(error))
            then(error if isinstance(error, LoopwrightError) else BrokerUnavailable(str(error)))

        self._publisher.publish(record).add_done_callback(done)


class SpoolResponsePublisher:
    """`delivery: spool`: an answer ends when its record is on disk. When the spool is full, chats go on all
    the same; each record that was not kept is counted (`loopwright_spool_lost_total`) and shown by
    `/readyz`."""

    def __init__(self, spool: Spool, readiness: Readiness) -> None:
        self._spool = spool
        self._readiness = readiness
        self._lost = 0
        self._lock = threading.Lock()
        readiness.set("spool", ok=True)

    def keep(self, record: Output, then: Then) -> None:
        try:
            self._spool.add(record)
        except Overloaded as error:
            SPOOL_LOST.inc()
            with self._lock:
                self._lost += 1
                lost = self._lost
            self._readiness.set(
                "spool", ok=True, detail=f"{lost} response records lost since the start: {error}"
            )
            log.warning("response_record_lost", error=str(error), lost=lost)
        then(None)


class SpoolSender:
    """The thread that sends the spool to Kafka, oldest first, and deletes what is acknowledged.

    A record whose acknowledgement was lost is sent again under the same `ce_id`; readers drop the second.
    """

    def __init__(self, spool: Spool, publisher: Publisher, *, retry_s: float = RETRY_S) -> None:
        self._spool = spool
        self._publisher = publisher
        self._retry_s = retry_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, flush_s: float) -> None:
        """Sends what is left for at most `flush_s` seconds; the rest stays on disk for the next start."""
        until = time.monotonic() + flush_s
        self._stopping.set()
        self._thread.join(flush_s)
        while len(self._spool) and not self._thread.is_alive() and time.monotonic() < until:
            if not self._send(max(0.1, until - time.monotonic())):
                break

    def _run(self) -> None:
        while not self._stopping.is_set():
            if self._spool.wait(0.2) and not self._send(ACK_S):
                self._stopping.wait(self._retry_s)

    def _send(self, timeout: float) -> bool:
        """One round. False where Kafka did not take all of it."""
        batch = self._spool.oldest(SEND_RECORDS)
        futures = [(spooled, self._publisher.publish(spooled.output)) for spooled in batch]
        until = time.monotonic() + timeout
        done = [
            s.number for s, future in futures if self._settled(s, future, max(0.0, until - time.monotonic()))
        ]
        if done:
            self._spool.remove(done)
        if len(done) < len(batch):
            log.warning("response_records_wait", waiting=len(self._spool))
        return len(done) == len(batch)

    @staticmethod
    def _settled(spooled: SpooledRecord, future: Future[Acked], timeout: float) -> bool:
        """Acknowledged, or never to be taken (counted as lost): either way the spool is done with it."""
        try:
            future.result(timeout)
        except Rejected as error:
            SPOOL_LOST.inc()
            log.warning("response_record_refused", number=spooled.number, error=str(error))
        except (LoopwrightError, FutureTimeout):
            return False
        return True
