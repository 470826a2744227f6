"""Records that our own HTTP APIs write: random request bodies, passed through the APIs' own parsing.

A body that an API refuses never enters the log, so it is dropped here too.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from services.feedback.core.schemas import (
    ERASURE_BODY,
    FEEDBACK_BODY,
    RESPONSE_BODY,
    parse_body,
    resolve_id,
    to_event,
    to_response,
)
from services.feedback.erasure_handler import MAX_ERASURE_BYTES, RETRACTION_PREFIX
from services.feedback.handlers import MAX_FEEDBACK_BYTES
from services.feedback.views import KnownLines, VersionsView
from services.inference.api.request_schemas import parse_chat_request
from services.inference.core.generation_request import ChoiceResult, GenerationRequest, GenerationResult
from services.inference.response_stream import RequestDetails, response_record
from shared.cloudevents import cloudevent
from shared.composed_ids import join_ids
from shared.errors import LoopwrightError
from shared.events import MAX_CHOICES, ErasureRequest, Usage, from_ms
from shared.feedback_kinds import KIND_BY_NAME
from shared.limits import MAX_RESPONSE_BYTES
from shared.pseudonym import Pseudonymiser
from shared.records import Output
from shared.topics import CHAT_RESPONSES, ERASED_WITHIN_DAYS, ERASURE_REQUESTS, FEEDBACK_EVENTS
from tests.fault.i13 import values

PSEUDONYMS = Pseudonymiser(b"a key that is long enough")
LINE = "assistant"
LINES = KnownLines(frozenset({LINE, "coder"}), VersionsView(), lambda: True)
MAX_BODY_BYTES = 1_000_000
KINDS = (*KIND_BY_NAME, "retract")


def feedback(body: dict[str, Any], now_ms: int, trace: str = "") -> Output | None:
    """Return the record of `POST /v1/feedback`, or None if the body is refused."""

    def accept(raw: bytes) -> Output:
        if len(raw) > MAX_FEEDBACK_BYTES:
            raise LoopwrightError("too large")
        parsed, now = parse_body(FEEDBACK_BODY, raw), from_ms(now_ms)
        event_id = resolve_id(parsed.event_id, None) or "generated"
        user = PSEUDONYMS.of(parsed.user_id)
        line = LINES.check(parsed.line or LINE)
        event = to_event(parsed, event_id=event_id, line=line, pseudonym=user, now=now)
        return cloudevent(
            FEEDBACK_EVENTS,
            event.response_id,
            event,
            source="feedback",
            ce_id=join_ids(event.response_id, event.event_id),
            at=now,
            traceparent=a_trace(trace or f"{now_ms} {raw!r}"),
        )

    return _accepted(body, accept)


def response(body: dict[str, Any], now_ms: int, trace: str = "") -> Output | None:
    """Return the record of `POST /v1/responses`, or None if the body is refused."""

    def accept(raw: bytes) -> Output:
        if len(raw) > MAX_BODY_BYTES:
            raise LoopwrightError("too large")
        parsed, now = parse_body(RESPONSE_BODY, raw), from_ms(now_ms)
        user = PSEUDONYMS.of(parsed.user_id) if parsed.user_id is not None else None
        record = to_response(parsed, line=LINES.check(parsed.line or LINE), pseudonym=user, now=now)
        return cloudevent(
            CHAT_RESPONSES,
            record.response_id,
            record,
            source="feedback",
            ce_id=record.response_id,
            at=now,
            traceparent=a_trace(trace or f"{now_ms} {raw!r}"),
        )

    return _accepted(body, accept)


def chat(body: dict[str, Any], now_ms: int, response_id: str, rng: random.Random) -> Output | None:
    """Return the record that inference writes about a chat, or None if the request is refused."""

    def accept(raw: bytes) -> Output:
        request = parse_chat_request(raw)
        status = rng.choice(("completed", "completed", "completed", "failed", "cancelled"))
        texts = [values.a_text(rng) for _ in range(request.n or 1)] if status != "failed" else []
        choices = tuple(ChoiceResult(n, text, rng.choice(("stop", None))) for n, text in enumerate(texts))
        user_id = request.user_id()
        record = response_record(
            GenerationRequest(
                response_id=response_id,
                version=f"{LINE}@base-00000000",
                messages=tuple(message.to_message() for message in request.messages),
                max_tokens=1,
            ),
            GenerationResult(status, Usage(), choices, None if status == "completed" else "out of memory"),
            RequestDetails(
                line=LINE,
                user_id=PSEUDONYMS.of(user_id) if user_id else None,
                metadata=dict(request.metadata or {}),
                created_at=from_ms(now_ms),
                traceparent=a_trace(f"{now_ms} {raw!r}"),
            ),
            latency_ms=rng.random() * 1e6,
            first_token_ms=None,
        )
        if len(record.value or b"") > MAX_RESPONSE_BYTES:
            raise LoopwrightError("answered, but not recorded")
        return record

    return _accepted(body, accept)


def erasure(body: dict[str, Any], now_ms: int) -> Output | None:
    """Return one copy of the record of `POST /v1/erasure`, or None if the body is refused."""

    def accept(raw: bytes) -> Output:
        parsed, now = parse_body(ERASURE_BODY, raw), from_ms(now_ms)
        request_id = resolve_id(parsed.request_id, None, "request_id") or "generated"
        if len(raw) > MAX_ERASURE_BYTES or request_id.startswith(RETRACTION_PREFIX):
            raise LoopwrightError("refused")
        request = ErasureRequest(
            line=LINES.check(parsed.line or LINE),
            request_id=request_id,
            subject=parsed.subject_of(PSEUDONYMS.of),
            requested_at=now,
            deadline=now + timedelta(days=ERASED_WITHIN_DAYS),
        )
        return cloudevent(
            ERASURE_REQUESTS, request.subject, request, source="feedback", ce_id=request.request_id, at=now
        )

    return _accepted(body, accept)


def _accepted(body: dict[str, Any], accept: Callable[[bytes], Output]) -> Output | None:
    try:
        return accept(json.dumps(body, ensure_ascii=False).encode())
    except (LoopwrightError, UnicodeEncodeError):  # UTF-8 has no lone surrogates, so no body can hold them
        return None


def a_trace(name: str) -> str:
    """Return a valid `traceparent` that depends on `name` only, because a seed must always give the same history."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    return f"00-{digest[:32]}-{digest[32:48]}-01"


# --- bodies -------------------------------------------------------------------------------------------------------


def a_value(rng: random.Random, kind: str, event_ids: list[str]) -> Any:
    """Return a value for a kind of feedback, mostly a valid one."""
    if rng.random() < 0.03:
        return rng.choice(values.SCALARS)
    side = rng.choice(("over", "under"))
    return {
        "thumbs": rng.choice(("up", "down")),
        "rating": rng.randint(1, 5),
        "correction": values.a_text(rng),
        "comment": values.a_text(rng),
        "preference": {side: rng.choice((rng.randrange(MAX_CHOICES), values.a_text(rng)))},
        "retract": rng.choice([*event_ids, values.an_id(rng)]),
    }.get(kind, "up")


def a_feedback_body(
    rng: random.Random, now_ms: int, *, response_id: str, user: str, event_ids: list[str]
) -> dict[str, Any]:
    """Return a body of `POST /v1/feedback`. `event_ids` are known events, which may be repeated or retracted."""
    kind = rng.choice(KINDS)
    body: dict[str, Any] = {
        "response_id": response_id,
        "event_id": rng.choice(event_ids) if event_ids and rng.random() < 0.15 else values.an_id(rng),
        "user_id": user,
        "kind": kind,
        "value": a_value(rng, kind, event_ids),
    }
    if rng.random() < 0.2:
        body["choice"] = rng.choice((0, 1, 7, 8, -1))
    if rng.random() < 0.2:
        tags = [values.a_text(rng, 64) for _ in range(rng.choice((1, 16, 17)))]
        body["tags"] = rng.choice((tags, {f"name-{n}": tag[:20] for n, tag in enumerate(tags)}, None))
    if kind == "rating" and rng.random() < 0.3:
        body["value"] = float(rng.randint(1, 5))
    if rng.random() < 0.1:
        body["line"] = rng.choice((LINE, "coder", "z" * 63, "A"))
    if (occurred_at := values.a_time(rng, now_ms)) is not None:
        body["occurred_at"] = occurred_at
    return body


def a_response_body(rng: random.Random, now_ms: int, *, response_id: str, user: str | None) -> dict[str, Any]:
    """Return a body of `POST /v1/responses`: up to 1 MB, so some are larger than a batch."""
    size = rng.random()
    texts = [values.a_text(rng) for _ in range(rng.choice((1, 1, 1, 2, 8)))]
    if size > 0.97:
        texts = ["x" * 32_768] * 8
    messages = [{"role": "user", "content": values.a_text(rng)}]
    if size > 0.98:
        messages = [{"role": "user", "content": "y" * 32_768}] * rng.choice((7, 15, 20, 64))
    body: dict[str, Any] = {
        "response_id": response_id,
        "version": rng.choice(("own", f"{LINE}@base-00000000", "x/y", "x|y", "v" * 256, "\x00\x1f")),
        "messages": messages,
        "choices": [
            {"index": rng.choice((n,) * 15 + (0,)), "text": text, "finish_reason": None}
            for n, text in enumerate(texts)
        ],
        "status": rng.choice(("completed", "completed", "completed", "failed", "cancelled")),
    }
    if rng.random() < 0.3:
        body |= _as_openai_holds_it(rng, texts)
    if user is not None:
        body["user_id"] = user
    if rng.random() < 0.1:
        body["line"] = rng.choice((LINE, "coder", "z" * 63))
    if (created_at := values.a_time(rng, now_ms)) is not None:
        body["created_at"] = created_at
    return body


def _as_openai_holds_it(rng: random.Random, texts: list[str]) -> dict[str, Any]:
    """Return fields of a response in OpenAI's form, with nulls, tool calls, usage and latency."""
    call = {"id": "c1", "type": "function", "function": {"name": values.a_text(rng, 64), "arguments": "{"}}
    choices: list[dict[str, Any]] = [
        {"index": float(n), "message": {"role": "assistant", "content": text}, "logprobs": None}
        for n, text in enumerate(texts)
    ]
    choices[0]["message"] = {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None}
    return {
        "choices": choices,
        "usage": rng.choice((None, {"prompt_tokens": 3.0, "completion_tokens": None, "total_tokens": 3})),
        "latency_ms": rng.choice((None, 0, 1e9, 1.5)),
        "metadata": rng.choice((None, {}, {"screen": values.a_text(rng, 512)})),
        "status": None,
    }


def a_chat_body(rng: random.Random, user: str | None) -> dict[str, Any]:
    """Return a body of `POST /v1/chat/completions`."""
    body: dict[str, Any] = {
        "model": LINE,
        "messages": [
            {"role": "assistant", "content": None}
            if rng.random() < 0.2
            else {"role": rng.choice(("user", "system", "tool")), "content": values.a_text(rng)}
            for _ in range(rng.choice((1, 1, 2, 64)))
        ],
        "n": rng.choice((None, 1, MAX_CHOICES)),
        "metadata": {values.a_text(rng, 64): values.a_text(rng, 512) for _ in range(rng.choice((0, 16)))},
    }
    if user is not None:
        body["user"] = user
    return body


def an_erasure_body(rng: random.Random, user: str) -> dict[str, Any]:
    """Return a body of `POST /v1/erasure`."""
    body: dict[str, Any] = {"user_id": user, "request_id": values.an_id(rng)}
    if rng.random() < 0.2:
        body = {"subject": values.an_id(rng), "request_id": values.an_id(rng)}
    if rng.random() < 0.2:
        body["line"] = rng.choice(("coder", "z" * 63))
    return body
