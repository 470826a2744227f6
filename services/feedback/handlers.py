"""What the routes do: validate, publish, and answer only after Kafka has acknowledged with acks=all."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Any

from fastapi.responses import JSONResponse
from uuid6 import uuid7

from services.feedback.core.receipts import Receipt, pending_receipt
from services.feedback.core.schemas import (
    FEEDBACK_BODY,
    RESPONSE_BODY,
    FeedbackBody,
    parse_body,
    resolve_id,
    to_event,
    to_response,
)
from services.feedback.outcome_lookup import OutcomeLookup
from services.feedback.rate_limit import retry_after_s, too_many_requests
from services.feedback.settings import FeedbackSettings
from services.feedback.views import OutcomeIndex, VersionsView
from shared.adapters import redis_keys
from shared.cloudevents import cloudevent, new_traceparent
from shared.errors import BrokerUnavailable, Conflict, NotYet, Overloaded, Oversized
from shared.events import Feedback, from_ms
from shared.feedback_quality import hint_for
from shared.ports import Acked, Cache, Clock, Publisher
from shared.pseudonym import Pseudonymiser
from shared.records import Output
from shared.telemetry import FEEDBACK_ACCEPTED
from shared.topics import CHAT_RESPONSES, FEEDBACK_EVENTS

SERVICE = "feedback"
MAX_FEEDBACK_BYTES = 262_144
NOT_RECOGNISED = (
    "No event_id and no Idempotency-Key was given, so one was issued: if you send this again, it is not recognised as "
    "the same. Send an id of your own to make retries safe."
)
_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class FeedbackHandlers:
    """The parts that the routes work with, made once."""

    settings: FeedbackSettings
    publisher: Publisher
    cache: Cache
    clock: Clock
    pseudonyms: Pseudonymiser
    standing: VersionsView
    index: OutcomeIndex
    history: OutcomeLookup

    async def take_feedback(
        self, raw: bytes, idempotency_key: str | None, traceparent: str | None
    ) -> JSONResponse:
        """202 accepted, 200 duplicate, 429; raises what becomes 409, 413, 422 or 503."""
        if len(raw) > MAX_FEEDBACK_BYTES:
            raise Oversized(f"the body is larger than {MAX_FEEDBACK_BYTES} bytes: send less")
        body = parse_body(FEEDBACK_BODY, raw)
        given = resolve_id(body.event_id, idempotency_key)
        event = self._event(body, given or str(uuid7()))
        bound = self.settings.user_per_minute
        wait_s = await asyncio.to_thread(retry_after_s, self.cache, self.clock, event.user_id, bound)
        if wait_s:
            return too_many_requests(f"one user may send {bound} events a minute", wait_s)
        if given is not None and await asyncio.to_thread(self._known, event):
            return _answer(event, "duplicate", 200)
        await self._acknowledged(
            cloudevent(
                FEEDBACK_EVENTS,
                event.response_id,
                event,
                source=SERVICE,
                ce_id=f"{event.response_id}/{event.event_id}",
                at=event.received_at,
                traceparent=trace_of(traceparent),
            )
        )
        FEEDBACK_ACCEPTED.labels(event.kind).inc()
        await asyncio.to_thread(self._remember, event)
        return _answer(event, "accepted", 202, note=None if given else NOT_RECOGNISED)

    async def take_response(self, raw: bytes, traceparent: str | None) -> JSONResponse:
        """202; raises what becomes 413, 422 or 503."""
        body = parse_body(RESPONSE_BODY, raw)
        pseudonym = self.pseudonyms.of(body.user_id) if body.user_id is not None else None
        now = from_ms(self.clock.now_ms())
        response = to_response(body, line=self.settings.line, pseudonym=pseudonym, now=now)
        await self._acknowledged(
            cloudevent(
                CHAT_RESPONSES,
                response.response_id,
                response,
                source=SERVICE,
                ce_id=response.response_id,
                at=now,
                traceparent=trace_of(traceparent),
            )
        )
        return JSONResponse({"response_id": response.response_id, "status": "accepted"}, 202)

    def receipt(self, response_id: str, event_id: str) -> Receipt:
        """Blocks while the log is searched, where Redis does not know. Raises `NotYet` (404) or `Retryable`."""
        found = self.index.find(response_id, event_id)
        if found is False:
            found = self.history.find(response_id, event_id)
            if found is True:
                self.index.await_outcome(response_id, event_id)
            elif found is not False:
                self.index.keep(found)
        if found is False:
            raise NotYet(
                f"event {event_id} on response {response_id} is not in the log: check both ids, and send the event if "
                "it was never answered with 202"
            )
        return pending_receipt(response_id, event_id) if found is True else self.standing.follow(found)

    def _event(self, body: FeedbackBody, event_id: str) -> Feedback:
        now = from_ms(self.clock.now_ms())
        pseudonym = self.pseudonyms.of(body.user_id)
        return to_event(body, event_id=event_id, line=self.settings.line, pseudonym=pseudonym, now=now)

    def _known(self, event: Feedback) -> bool:
        """Whether the same was acknowledged before. Raises `Conflict` where something else was. Best effort: the
        processor decides."""
        found = self.cache.get(redis_keys.identity(event.response_id, event.event_id))
        if found is not None and found.decode() != event.content_digest():
            raise Conflict(
                f"event {event.event_id} on response {event.response_id} was sent before with other content, and the "
                "first stands: send a change under a new event_id"
            )
        return found is not None

    def _remember(self, event: Feedback) -> None:
        """After the acknowledgement, never before: a key without its event would turn the retry away, and lose it."""
        key = redis_keys.identity(event.response_id, event.event_id)
        self.cache.put_if_absent(key, event.content_digest().encode(), ttl_s=self.settings.identity_ttl_s)
        self.index.await_outcome(event.response_id, event.event_id)

    async def _acknowledged(self, record: Output) -> Acked:
        """Raises `BrokerUnavailable` where Kafka has not acknowledged in time; the record may still arrive."""
        timeout_s = self.settings.ack_timeout_s
        try:
            # The publisher keeps to the same time; one second more is for its report.
            return await asyncio.wait_for(asyncio.wrap_future(self.publisher.publish(record)), timeout_s + 1)
        except (TimeoutError, BrokerUnavailable, Overloaded) as error:
            raise BrokerUnavailable(
                f"Kafka has not acknowledged within {timeout_s:g} s, so this may be lost: send it again under the same "
                f"id ({str(error) or 'no answer'})"
            ) from error


def _answer(event: Feedback, status: str, code: int, note: str | None = None) -> JSONResponse:
    hint = hint_for(event)
    body: dict[str, Any] = {
        "event_id": event.event_id,
        "status": status,
        "actionable": hint is None,
        "hint": hint,
    }
    return JSONResponse(body | ({"note": note} if note else {}), code)


def trace_of(given: str | None) -> str:
    """The caller's trace context; a fresh one where it gave none, or a broken one."""
    return given if given is not None and _TRACEPARENT.fullmatch(given) else new_traceparent()
