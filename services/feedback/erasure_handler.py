"""What the routes of erasure do: ask who it is, write one request to every partition or to none, follow it.

An erasure is an operator's call: whoever may erase one user may erase all of them.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from fastapi.responses import JSONResponse
from uuid6 import uuid7

from services.feedback.core.schemas import ERASURE_BODY, parse_body, resolve_id
from services.feedback.erasure_status import ErasureStatus, ErasureStatusView
from services.feedback.handlers import SERVICE, trace_of
from services.feedback.rate_limit import retry_after_s, too_many_requests
from services.feedback.settings import FeedbackSettings
from shared.adapters.http import problem
from shared.cloudevents import cloudevent
from shared.errors import BrokerUnavailable, Conflict, NotYet, Overloaded, Oversized, Rejected, Retryable
from shared.events import ErasureRequest, from_ms
from shared.ports import Cache, Clock, LogReader, TransactionalPublisher
from shared.pseudonym import Pseudonymiser
from shared.topics import ERASED_WITHIN_DAYS, ERASURE_REQUESTS

MAX_ERASURE_BYTES = 8_192
TOKEN_SETTING = "LOOPWRIGHT_FEEDBACK_ERASURE_TOKEN"  # noqa: S105 - the name of a variable
RETRACTED = "retract:"
"""How the processor names late retractions among the erasures."""
CALLER = "erasures"
POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class ErasureHandler:
    """`open_publisher` opens the transactional publisher of this process, under its own identity; what a publisher
    before it left open is then settled. `open_requests` reads one partition of `erasure.requests` from its beginning:
    a request is in all of them or in none. One erasure is written at a time."""

    settings: FeedbackSettings
    open_publisher: Callable[[], TransactionalPublisher]
    open_requests: Callable[[], LogReader]
    cache: Cache
    clock: Clock
    pseudonyms: Pseudonymiser
    erasures: ErasureStatusView
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def refusal(self, authorization: str | None) -> JSONResponse | None:
        """None if the caller has shown the token; 403 where no token would do, else 401."""
        token = self.settings.erasure_token
        if token is None:
            detail = (
                f"this door erases nobody: {TOKEN_SETTING} is not set. Set it to 32 random characters of your own and "
                "restart feedback; callers then send it as `Authorization: Bearer ...`"
            )
            return problem(403, "erasure_not_configured", "Erasure is not configured", detail)
        scheme, _, shown = (authorization or "").partition(" ")
        known = token.get_secret_value().encode()
        if scheme.lower() == "bearer" and hmac.compare_digest(shown.strip().encode(), known):
            return None
        detail = (
            f"an erasure needs `Authorization: Bearer ...` with what {TOKEN_SETTING} is set to at the door"
        )
        answer = problem(401, "unauthorised", "No or another erasure token", detail)
        answer.headers["WWW-Authenticate"] = "Bearer"
        return answer

    def take(self, raw: bytes, idempotency_key: str | None, traceparent: str | None) -> JSONResponse:
        """202 once the request is committed to every partition, also if it was before; 429. Blocks. Raises what
        becomes 409, 413, 422 or 503."""
        if len(raw) > MAX_ERASURE_BYTES:
            raise Oversized(f"the body is larger than {MAX_ERASURE_BYTES} bytes: it names one user")
        body = parse_body(ERASURE_BODY, raw)
        given = resolve_id(body.request_id, idempotency_key, "request_id")
        if given is not None and given.startswith(RETRACTED):
            raise Rejected(f"request_id: {RETRACTED!r} begins the names of retractions; choose another")
        bound = self.settings.erasures_per_minute
        wait_s = retry_after_s(self.cache, self.clock, CALLER, bound)
        if wait_s:
            return too_many_requests(f"this door takes {bound} erasures a minute", wait_s)
        now = from_ms(self.clock.now_ms())
        request = ErasureRequest(
            line=body.line or self.settings.line,
            request_id=given or str(uuid7()),
            subject=self.pseudonyms.of(body.user_id),
            requested_at=now,
            deadline=now + timedelta(days=ERASED_WITHIN_DAYS),
        )
        standing = self._recorded(request, trace_of(traceparent))
        return JSONResponse(self.find(standing.request_id).model_dump(mode="json", exclude_none=True), 202)

    def find(self, request_id: str) -> ErasureStatus:
        """Raises `NotYet` (404)."""
        found = self.erasures.find(request_id, from_ms(self.clock.now_ms()))
        if found is None:
            raise NotYet(
                f"erasure {request_id} is not in the log: check the id, and ask for it (POST /v1/erasure) if that was "
                "never answered with 202"
            )
        return found

    def _recorded(self, request: ErasureRequest, trace: str) -> ErasureRequest:
        """The request as it stands in the log: this one, or the first under its id."""
        if not self._turn.acquire(timeout=self.settings.ack_timeout_s):
            raise Overloaded("other erasures are being written: try again in some seconds")
        try:
            standing = self.erasures.request(request.request_id) or self._committed(request, trace)
        except Retryable as error:
            raise BrokerUnavailable(
                f"it is not known whether the erasure is in the log: ask for it again under the request_id "
                f"{request.request_id} ({error})"
            ) from error
        finally:
            self._turn.release()
        if (standing.subject, standing.line) != (request.subject, request.line):
            raise Conflict(
                f"erasure {request.request_id} was asked for before, for another user or line, and that one stands: "
                "choose a new request_id"
            )
        return standing

    def _committed(self, request: ErasureRequest, trace: str) -> ErasureRequest:
        """Opened first: whatever an earlier try left undecided is settled by it, and the log then tells."""
        publisher = self.open_publisher()
        try:
            standing = self._in_log(request.request_id)
            if standing is None:
                publisher.publish_all(
                    [
                        cloudevent(
                            ERASURE_REQUESTS,
                            request.subject,
                            request,
                            source=SERVICE,
                            ce_id=f"{request.request_id}/{partition}",
                            at=request.requested_at,
                            traceparent=trace,
                            partition=partition,
                        )
                        for partition in range(self.settings.partitions)
                    ]
                )
                standing = request
        finally:
            publisher.close()
        self.erasures.note(standing)
        return standing

    def _in_log(self, request_id: str) -> ErasureRequest | None:
        deadline = time.monotonic() + self.settings.scan_timeout_s
        reader = self.open_requests()
        found: list[ErasureRequest] = []
        try:
            while not reader.at_end():
                if time.monotonic() > deadline:
                    raise BrokerUnavailable("the requests before it could not be read in time")
                for record in reader.poll(POLL_S):
                    try:
                        found.append(ErasureRequest.from_json(record.value))
                    except Rejected:  # the follower has told of it
                        continue
        finally:
            reader.close()
        return next((one for one in found if one.request_id == request_id), None)
