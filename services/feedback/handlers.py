"""Handlers of feedback, responses and receipts. Each validates, publishes, and answers after Kafka acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from fastapi.responses import JSONResponse, Response
from uuid6 import uuid7

from services.feedback.core.browser_feedback import parse_feedback
from services.feedback.core.caller_limits import CallerLimits, RateLimit
from services.feedback.core.receipts import NoOutcome, Receipt, pending_receipt
from services.feedback.core.schemas import (
    RESPONSE_BODY,
    FeedbackBody,
    ResponseBody,
    check_id,
    parse_body,
    resolve_id,
    to_event,
    to_response,
)
from services.feedback.rate_limit import count_request, too_many_requests, wait_s
from services.feedback.receipt_lookup import ReceiptLookup
from services.feedback.settings import SERVICE, FeedbackSettings
from services.feedback.views import ErasureStatusView, KnownLines, VersionsView
from shared.adapters import redis_keys
from shared.adapters.access import ANONYMOUS, Caller
from shared.adapters.async_publisher import AsyncPublisher
from shared.cloudevents import cloudevent, valid_traceparent
from shared.composed_ids import join_ids
from shared.errors import BrokerUnavailable, Conflict, NotPermitted, NotYet, Overloaded, Oversized
from shared.events import ChatResponse, Feedback, Retract, from_ms
from shared.feedback_kinds import hint_for
from shared.feedback_quality import VAGUE_CODE
from shared.ports import Acked, AsyncCache, CacheCommand, Clock, Get, PutIfAbsent
from shared.pseudonym import Pseudonymiser
from shared.records import Output
from shared.telemetry import FEEDBACK_ACCEPTED
from shared.topics import CHAT_RESPONSES, FEEDBACK_EVENTS, FEEDBACK_OUTCOMES

MAX_FEEDBACK_BYTES: Final = 262_144
ID_ISSUED: Final = (
    "The request had no event_id and no Idempotency-Key, so an id was generated. A retry of this request will not be "
    "recognised as a duplicate. Send your own id to make retries safe."
)


@dataclass(frozen=True, slots=True)
class FeedbackHandlers:
    """Handlers of the routes, and the parts that they use."""

    settings: FeedbackSettings
    publisher: AsyncPublisher
    cache: AsyncCache
    clock: Clock
    pseudonymiser: Pseudonymiser
    lines: KnownLines
    versions: VersionsView
    erasures: ErasureStatusView
    receipts: ReceiptLookup

    async def post_feedback(
        self,
        raw: bytes,
        idempotency_key: str | None,
        traceparent: str | None,
        caller: Caller = ANONYMOUS,
        *,
        dry_run: bool = False,
    ) -> Response:
        """Accept a feedback event: 202, or 200 for a duplicate or a dry run, or 429.

        Raises:
            Oversized: if the body is too large (413).
            Rejected: if the body is invalid (422).
            Conflict: if other content was accepted under the same event_id (409).
            BrokerUnavailable: if Kafka does not acknowledge in time (503).

        """
        if len(raw) > MAX_FEEDBACK_BYTES:
            raise Oversized(f"the body exceeds {MAX_FEEDBACK_BYTES} bytes: shorten the text")
        body = parse_feedback(raw, caller.grant)
        event_id = resolve_id(body.event_id, idempotency_key)
        event = self.to_event(body, event_id or str(uuid7()))
        per_user = self.settings.user_per_minute
        limits = (
            *self._caller_limits(caller),
            RateLimit(event.user_id, per_user, f"one user may send {per_user} events per minute"),
        )
        identity = self.identity_of(event)
        refusal, known = await self._look_up(
            () if dry_run else limits, () if event_id is None else (Get(identity.key),)
        )
        if refusal is not None:
            return refusal
        if known and known[0] is not None:
            if known[0] != identity.value:
                raise conflict(event)
            return _response(feedback_answer(event, "duplicate"), 200)
        if dry_run:
            return _response(feedback_answer(event, "valid"), 200)
        await self.publish(self.feedback_record(event, traceparent))
        FEEDBACK_ACCEPTED.labels(event.kind).inc()
        # Only after the acknowledgement: a key without its event would turn a retry away, and the event would be lost.
        await self.cache.run([identity])
        note = {} if event_id else {"note": ID_ISSUED}
        return _response(feedback_answer(event, "accepted") | note, 202)

    async def post_response(
        self, raw: bytes, traceparent: str | None, caller: Caller = ANONYMOUS, *, dry_run: bool = False
    ) -> JSONResponse:
        """Accept a response of an app's own model: 202, or 200 for a dry run, or 429.

        Raises:
            Oversized: if a batch could not hold the response (413).
            Rejected: if the body is invalid (422).
            BrokerUnavailable: if Kafka does not acknowledge in time (503).

        """
        response = self.to_response(parse_body(RESPONSE_BODY, raw))
        if dry_run:
            return JSONResponse(response_answer(response, "valid"), 200)
        per_sender = self.settings.responses_per_minute
        of = "one user" if response.user_id else "requests without a user"
        limits = (
            *self._caller_limits(caller),
            RateLimit(
                f"responses/{response.user_id or f'line/{response.line}'}",
                per_sender,
                f"{of} may record {per_sender} responses per minute",
            ),
        )
        refusal, _ = await self._look_up(limits, ())
        if refusal is not None:
            return refusal
        await self.publish(self.response_record(response, traceparent))
        return JSONResponse(response_answer(response, "accepted"), 202)

    async def retract(self, event: Retract, traceparent: str | None) -> None:
        """Publish a retraction of an event whose user's pseudonym is known from the log.

        Raises:
            BrokerUnavailable: if Kafka does not acknowledge in time (503).

        """
        await self.publish(self.feedback_record(event, traceparent))
        FEEDBACK_ACCEPTED.labels(event.kind).inc()

    def get_receipt(self, response_id: str, event_id: str) -> Receipt:
        """Return the receipt of an event. Blocks.

        Raises:
            Malformed: if no event can have these ids (422).
            NotYet: if the event is not in the log (404).
            Retryable: if that cannot be known at the moment (429 or 503).

        """
        check_id(response_id, "the response_id")
        check_id(event_id, "the event_id")
        outcome = self.receipts.find(response_id, event_id)
        if outcome is NoOutcome.NOT_FOUND:
            raise NotYet(
                f"event {event_id} on response {response_id} is not in the log: check both ids, and send the event "
                f"again if it was never acknowledged with 202. Receipts are kept for {FEEDBACK_OUTCOMES.keep_days} days"
            )
        if outcome is NoOutcome.PENDING:
            return pending_receipt(response_id, event_id)
        return self.versions.receipt(outcome, self.clock.now_ms())

    def _caller_limits(self, caller: Caller) -> tuple[RateLimit, ...]:
        limits = CallerLimits(self.settings.key_per_minute, self.settings.token_per_minute)
        return limits.of(caller.key_id, caller.grant.response_id if caller.grant is not None else None)

    async def _look_up(
        self, limits: Sequence[RateLimit], gets: Sequence[Get]
    ) -> tuple[JSONResponse | None, list[int | bytes | None]]:
        """Count a request against its limits. Return the response if one is exceeded, and the values of `gets`."""
        now_ms = self.clock.now_ms()
        commands: list[CacheCommand] = [*(count_request(limit.counted, now_ms) for limit in limits), *gets]
        results = await self.cache.run(commands) if commands else []
        for limit, count in zip(limits, results, strict=False):
            if wait := wait_s(count, limit.per_minute, now_ms):
                return too_many_requests(limit.text, wait), []
        return None, results[len(limits) :]

    def to_event(self, body: FeedbackBody, event_id: str) -> Feedback:
        """Return the record of a feedback event."""
        now = from_ms(self.clock.now_ms())
        pseudonym = self.pseudonymiser.of(body.user_id)
        line = self.lines.check(body.line or self.settings.line)
        return to_event(body, event_id=event_id, line=line, pseudonym=pseudonym, now=now)

    def to_response(self, body: ResponseBody) -> ChatResponse:
        """Return the record of a response."""
        now = from_ms(self.clock.now_ms())
        pseudonym = self.pseudonymiser.of(body.user_id) if body.user_id is not None else None
        line = self.lines.check(body.line or self.settings.line)
        return to_response(body, line=line, pseudonym=pseudonym, now=now)

    def feedback_record(self, event: Feedback, traceparent: str | None) -> Output:
        """Return the event as it is written to the log."""
        return cloudevent(
            FEEDBACK_EVENTS,
            event.response_id,
            event,
            source=SERVICE,
            ce_id=join_ids(event.response_id, event.event_id),
            at=event.received_at,
            traceparent=valid_traceparent(traceparent),
        )

    def response_record(self, response: ChatResponse, traceparent: str | None) -> Output:
        """Return the response as it is written to the log."""
        return cloudevent(
            CHAT_RESPONSES,
            response.response_id,
            response,
            source=SERVICE,
            ce_id=response.response_id,
            at=from_ms(self.clock.now_ms()),
            traceparent=valid_traceparent(traceparent),
        )

    def identity_of(self, event: Feedback) -> PutIfAbsent:
        """Return what remembers an acknowledged event, to recognise repetitions. Best effort: the processor decides."""
        return PutIfAbsent(
            redis_keys.identity(event.response_id, event.event_id, self.erasures.count(event.user_id)),
            event.content_digest().encode(),
            self.settings.identity_ttl_s,
        )

    async def publish(self, record: Output) -> Acked:
        """Publish a record and wait until Kafka has acknowledged it.

        Raises:
            BrokerUnavailable: if Kafka does not acknowledge in time. The record may still arrive.
            NotPermitted: if this service may not write the topic.

        """
        timeout_s = self.settings.ack_timeout_s
        try:
            # The publisher has the same timeout; one more second lets its own error arrive first.
            async with asyncio.timeout(timeout_s + 1):
                return await self.publisher.publish(record)
        except NotPermitted:
            raise
        except (TimeoutError, BrokerUnavailable, Overloaded) as error:
            raise BrokerUnavailable(
                f"Kafka did not acknowledge within {timeout_s:g} s ({str(error) or 'no answer'}), so this may be lost: "
                "send it again under the same id"
            ) from error


def conflict(event: Feedback) -> Conflict:
    """Return the error for an event whose id was acknowledged with other content."""
    return Conflict(
        f"event {event.event_id} on response {event.response_id} was already accepted with other content, "
        "which stands: send the change under a new event_id"
    )


def feedback_answer(event: Feedback, status: str) -> dict[str, Any]:
    """Return the response body about an event."""
    hint = hint_for(event)
    code = {} if hint is None else {"hint_code": VAGUE_CODE}
    return {"event_id": event.event_id, "status": status, "actionable": hint is None, "hint": hint} | code


def response_answer(response: ChatResponse, status: str) -> dict[str, Any]:
    """Return the response body about a response."""
    return {"response_id": response.response_id, "status": status}


def _response(body: dict[str, Any], code: int) -> Response:
    return Response(orjson.dumps(body), code, media_type="application/json")
