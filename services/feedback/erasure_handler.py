"""Handler of erasures: write the request to every partition or to none, report its progress.

The routes need an API key with the scope `erase`, which is an operator's: it may erase any user.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from fastapi.responses import JSONResponse
from uuid6 import uuid7

from services.feedback.core.erasure_status import ErasureStatus
from services.feedback.core.schemas import ERASURE_BODY, parse_body, resolve_id
from services.feedback.rate_limit import retry_after_s, too_many_requests
from services.feedback.settings import SERVICE, FeedbackSettings
from services.feedback.views import ErasureStatusView, KnownLines
from shared.cloudevents import cloudevent, valid_traceparent
from shared.errors import BrokerUnavailable, Conflict, NotYet, Overloaded, Oversized, Rejected, Retryable
from shared.events import ErasureRequest, from_ms
from shared.ports import Cache, Clock, LogReader, TransactionalPublisher
from shared.pseudonym import Pseudonymiser
from shared.topics import ERASED_WITHIN_DAYS, ERASURE_REQUESTS

MAX_ERASURE_BYTES: Final = 8_192
RETRACTION_PREFIX: Final = "retract:"
"""The processor erases late retractions under request ids with this prefix."""
ALL_CALLERS: Final = "erasures"
"""Erasures are limited for all callers together, under this name."""
POLL_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class ErasureHandler:
    """Handler of the erasure routes. It writes one erasure at a time."""

    settings: FeedbackSettings
    open_publisher: Callable[[], TransactionalPublisher]
    """Opens the transactional publisher of this process; opening it settles any transaction that it left open."""
    open_requests: Callable[[], LogReader]
    """Opens a reader of one partition of `erasure.requests` from its beginning: each partition has all requests."""
    cache: Cache
    clock: Clock
    pseudonymiser: Pseudonymiser
    lines: KnownLines
    erasures: ErasureStatusView
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def post_erasure(
        self, raw: bytes, idempotency_key: str | None, traceparent: str | None, *, issued_by: str
    ) -> JSONResponse:
        """Accept an erasure request: 202 once it is committed to every partition, now or before; or 429. Blocks.

        Raises:
            Oversized: if the body is too large (413).
            Rejected: if the body is invalid (422).
            Conflict: if another request has the same id (409).
            Retryable: if the request could not be written, or this is unknown (429 or 503).

        """
        if len(raw) > MAX_ERASURE_BYTES:
            raise Oversized(f"the body exceeds {MAX_ERASURE_BYTES} bytes: send one user per request")
        body = parse_body(ERASURE_BODY, raw)
        request_id = resolve_id(body.request_id, idempotency_key, "request_id")
        if request_id is not None and request_id.startswith(RETRACTION_PREFIX):
            raise Rejected(
                f"request_id starts with {RETRACTION_PREFIX!r}, which is reserved: choose another request_id"
            )
        limit = self.settings.erasures_per_minute
        wait_s = retry_after_s(self.cache, self.clock, ALL_CALLERS, limit)
        if wait_s:
            return too_many_requests(f"this service accepts {limit} erasures per minute", wait_s)
        now = from_ms(self.clock.now_ms())
        request = ErasureRequest(
            line=self.lines.check(body.line or self.settings.line),
            request_id=request_id or str(uuid7()),
            subject=body.subject_of(self.pseudonymiser.of),
            issued_by=issued_by,
            requested_at=now,
            deadline=now + timedelta(days=ERASED_WITHIN_DAYS),
        )
        recorded = self._ensure_recorded(request, valid_traceparent(traceparent))
        status = self.get_status(recorded.request_id)
        return JSONResponse(status.model_dump(mode="json", exclude_none=True), 202)

    def get_status(self, request_id: str) -> ErasureStatus:
        """Return the progress of an erasure.

        Raises:
            NotYet: if the log has no record of it (404).

        """
        status = self.erasures.status(request_id, from_ms(self.clock.now_ms()))
        if status is None:
            raise NotYet(
                f"erasure {request_id} is not in the log: check the id, and send the request again "
                "(POST /v1/erasure) if it was never acknowledged with 202"
            )
        return status

    def _ensure_recorded(self, request: ErasureRequest, traceparent: str) -> ErasureRequest:
        """Return the request that is in the log under this id: an earlier one, or `request` after writing it."""
        if not self._lock.acquire(timeout=self.settings.ack_timeout_s):
            raise Overloaded("other erasure requests are being written: try again in a few seconds")
        try:
            recorded = self.erasures.request(request.request_id) or self._write(request, traceparent)
        except Retryable as error:
            raise BrokerUnavailable(
                f"the erasure may not be in the log ({error}): send it again under the request_id "
                f"{request.request_id}"
            ) from error
        finally:
            self._lock.release()
        if (recorded.subject, recorded.line) != (request.subject, request.line):
            raise Conflict(
                f"request_id {request.request_id} is already used for the erasure of another user or line, which "
                "stands: choose a new request_id"
            )
        return recorded

    def _write(self, request: ErasureRequest, traceparent: str) -> ErasureRequest:
        # The publisher is opened first: that settles what an earlier attempt left undecided, so the log is final.
        publisher = self.open_publisher()
        try:
            recorded = self._find_in_log(request.request_id)
            if recorded is None:
                publisher.publish_all(
                    [
                        cloudevent(
                            ERASURE_REQUESTS,
                            request.subject,
                            request,
                            source=SERVICE,
                            ce_id=f"{request.request_id}/{partition}",
                            at=request.requested_at,
                            traceparent=traceparent,
                            partition=partition,
                        )
                        for partition in range(self.settings.partitions)
                    ]
                )
                recorded = request
        finally:
            publisher.close()
        self.erasures.add_request(recorded)
        return recorded

    def _find_in_log(self, request_id: str) -> ErasureRequest | None:
        deadline = time.monotonic() + self.settings.scan_timeout_s
        reader = self.open_requests()
        found: ErasureRequest | None = None
        try:
            while not reader.at_end():
                if time.monotonic() > deadline:
                    raise BrokerUnavailable("earlier erasure requests could not be read in time")
                for record in reader.poll(POLL_S):
                    try:
                        request = ErasureRequest.from_json(record.value)
                    except Rejected:  # already logged by the view's follower
                        continue
                    if found is None and request.request_id == request_id:
                        found = request
        finally:
            reader.close()
        return found
