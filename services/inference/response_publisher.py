"""Publishing of response records to `chat.responses`, through the spool or directly (setting `delivery`)."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Protocol

import structlog

from services.inference.spool import Spool, SpooledRecord
from shared.errors import BrokerUnavailable, LoopwrightError, Overloaded, Rejected
from shared.ports import Acked, Publisher
from shared.records import Output
from shared.telemetry import SPOOL_LOST, Readiness

SEND_BATCH = 100
ACK_TIMEOUT_S = 30.0
RETRY_S = 1.0
LOST = "the response could not be stored ({}), so feedback on it will be `unmatched`"


class OnPublished(Protocol):
    """Called once a response record was published or given up."""

    def __call__(self, error: LoopwrightError | None, not_recorded: str | None = None) -> None:
        """Let the answer end, or fail with `error`. `not_recorded` is why there is no record, for the caller."""


log = structlog.get_logger(__name__)


class ResponsePublisher(Protocol):
    """Publisher of response records, with the delivery guarantee of one `delivery` setting."""

    def publish(self, record: Output, on_published: OnPublished) -> None:
        """Publish a record and call `on_published` exactly once, from any thread. Never raises.

        The callback gets None if the answer may end, else the reason why the request must fail. If the answer ends
        without a record, it also gets the reason for that.
        """


class StrictResponsePublisher:
    """`delivery: strict`: an answer ends only after Kafka has acknowledged its record.

    Args:
        publisher: Its timeout limits how long an answer can be delayed.

    """

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    def publish(self, record: Output, on_published: OnPublished) -> None:
        """Publish to Kafka. See `ResponsePublisher.publish`."""

        def acknowledged(future: Future[Acked]) -> None:
            error = future.exception()
            if error is None:
                on_published(None)
                return
            log.error("response_record_not_published", error=str(error))
            on_published(error if isinstance(error, LoopwrightError) else BrokerUnavailable(str(error)))

        try:
            future = self._publisher.publish(record)
        except Exception as error:  # the engine's thread called, and must go on
            log.exception("response_record_not_published")
            on_published(error if isinstance(error, LoopwrightError) else BrokerUnavailable(str(error)))
            return
        future.add_done_callback(acknowledged)


class SpoolResponsePublisher:
    """`delivery: spool`: an answer ends as soon as its record is on disk.

    If the spool is full, chats still succeed. Each lost record is counted in `loopwright_spool_lost_total`, and
    `/readyz` shows the number.
    """

    def __init__(self, spool: Spool, readiness: Readiness) -> None:
        self._spool = spool
        self._readiness = readiness
        self._lost = 0
        self._lock = threading.Lock()
        readiness.set("spool", ok=True)

    def publish(self, record: Output, on_published: OnPublished) -> None:
        """Append to the spool. See `ResponsePublisher.publish`."""
        try:
            self._spool.add(record)
        except Overloaded as error:
            SPOOL_LOST.inc()
            with self._lock:
                self._lost += 1
                lost = self._lost
            self._readiness.set("spool", ok=True, detail=f"{lost} response records lost since start: {error}")
            log.warning("response_record_lost", error=str(error), lost=lost)
            on_published(None, LOST.format(error))
            return
        on_published(None)


class SpoolSender:
    """Thread that sends spooled records to Kafka, oldest first, and removes the acknowledged ones.

    A record whose acknowledgement was lost is sent again under the same `ce_id`; readers drop the duplicate. An
    acknowledged record that cannot be removed, because the disk is full, is not sent again by this process.

    The thread survives every error, such as a full disk, and tries again. Meanwhile the check `spool_sender` fails with
    the reason. While only Kafka refuses the records, the check passes and its detail has the reason.
    """

    def __init__(
        self, spool: Spool, publisher: Publisher, readiness: Readiness, *, retry_s: float = RETRY_S
    ) -> None:
        self._spool = spool
        self._publisher = publisher
        self._readiness = readiness
        readiness.set("spool_sender", ok=True)
        self._retry_s = retry_s
        self._sent: set[int] = set()
        """Numbers of acknowledged records that could not be removed yet."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, flush_s: float) -> None:
        """Send remaining records for at most `flush_s` seconds; the rest stays on disk for the next start."""
        deadline = time.monotonic() + flush_s
        self._stopping.set()
        self._thread.join(flush_s)
        while len(self._spool) and not self._thread.is_alive() and time.monotonic() < deadline:
            try:
                if not self._send_batch(max(0.1, deadline - time.monotonic())):
                    break
            except Overloaded as error:
                log.warning("spooled_records_kept", reason=str(error))
                break

    def _run(self) -> None:
        while not self._stopping.is_set():
            if self._spool.wait(0.2) and not self._try_batch():
                self._stopping.wait(self._retry_s)

    def _try_batch(self) -> bool:
        """Send a batch, and report in the readiness check whether that works. Never raises."""
        try:
            sent = self._send_batch(ACK_TIMEOUT_S)
        except Exception as error:  # a thread that ended would never send again, and nobody would notice
            log.exception("spool_sender_failed")
            self._readiness.set(
                "spool_sender", ok=False, detail=f"cannot send spooled records, trying again: {error}"
            )
            return False
        detail = "" if sent else self._publisher.problem or f"{len(self._spool)} records wait for Kafka"
        self._readiness.set("spool_sender", ok=True, detail=detail)
        return sent

    def _send_batch(self, timeout_s: float) -> bool:
        """Send the oldest records. Return whether the spool is done with all of them."""
        batch = self._spool.oldest(SEND_BATCH)
        unsent = [spooled for spooled in batch if spooled.number not in self._sent]
        futures = [(spooled, self._publisher.publish(spooled.output)) for spooled in unsent]
        deadline = time.monotonic() + timeout_s
        for spooled, future in futures:
            if self._is_done(spooled, future, max(0.0, deadline - time.monotonic())):
                self._sent.add(spooled.number)
        done = [spooled.number for spooled in batch if spooled.number in self._sent]
        if done:
            self._spool.remove(done)
            self._sent.clear()
        if len(done) < len(batch):
            log.warning("spooled_records_not_acknowledged", waiting=len(self._spool))
        return len(done) == len(batch)

    @staticmethod
    def _is_done(spooled: SpooledRecord, future: Future[Acked], timeout_s: float) -> bool:
        """Wait for the acknowledgement. A rejected record is done too: retrying cannot help, so it is lost."""
        try:
            future.result(timeout_s)
        except Rejected as error:
            SPOOL_LOST.inc()
            log.warning("spooled_record_rejected", number=spooled.number, error=str(error))
        except (LoopwrightError, FutureTimeout):
            return False
        return True
