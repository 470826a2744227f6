"""From what a caller sends to the record on the log. Pure: the clock and the key are the caller's."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Annotated, Any, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from shared.errors import Malformed, Rejected
from shared.events import (
    EARLIEST,
    FEEDBACK,
    ChatResponse,
    Choice,
    Feedback,
    Id,
    Line,
    Message,
    Usage,
    rfc3339,
)

FUTURE = timedelta(days=1)
"""How far ahead a user's clock may be."""
ACCEPTED_TIMES = f"from {rfc3339(EARLIEST)} until one day in the future"
MAX_FAULTS = 5
_NO_CONTROL = r"^[^\x00-\x1f\x7f-\x9f]+$"
UserId = Annotated[str, Field(min_length=1, max_length=256, pattern=_NO_CONTROL)]
T = TypeVar("T")


class Body(BaseModel):
    """Strict and closed: a misspelt field is an error to be told, not a word to be lost."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FeedbackBody(Body):
    """One thing a user said about one response (`POST /v1/feedback`)."""

    event_id: Id | None = Field(None, description="yours; the same again under it counts once")
    line: Line | None = None
    response_id: Id = Field(description="the chat completion's `id`")
    choice: int = 0
    user_id: UserId = Field(description="your name of the user; a pseudonym takes its place at once")
    kind: str = Field(max_length=32, description="thumbs, rating, correction, comment, preference or retract")
    value: JsonValue = Field(
        description='"up" or "down"; 1..5; the corrected answer; the comment; {"over": text or choice} or '
        '{"under": text or choice}; the event_id to retract'
    )
    tags: list[Annotated[str, Field(pattern=_NO_CONTROL)]] = []
    occurred_at: AwareDatetime | None = Field(
        None, description=f"when the user said it, {ACCEPTED_TIMES}; absent = now"
    )


class ResponseBody(Body):
    """One answer of an app's own model (`POST /v1/responses`)."""

    response_id: Id
    line: Line | None = None
    version: str = Field(min_length=1, max_length=256, description="your name of the model that answered")
    messages: list[Message] = Field(min_length=1)
    choices: list[Choice] = Field(min_length=1)
    status: str = "completed"
    error: str | None = None
    user_id: UserId | None = Field(
        None, description="your name of the user; a pseudonym takes its place at once"
    )
    metadata: dict[str, str] = {}
    usage: Usage = Usage()
    latency_ms: float | None = None
    first_token_ms: float | None = None
    created_at: AwareDatetime | None = Field(
        None, description=f"when it was answered, {ACCEPTED_TIMES}; absent = now"
    )


class ErasureBody(Body):
    """Everything of one user is to go (`POST /v1/erasure`)."""

    user_id: UserId = Field(description="your name of the user; a pseudonym takes its place at once")
    request_id: Id | None = Field(None, description="yours; the same again under it is the same erasure")
    line: Line | None = None


FEEDBACK_BODY = TypeAdapter(FeedbackBody)
RESPONSE_BODY = TypeAdapter(ResponseBody)
ERASURE_BODY = TypeAdapter(ErasureBody)
_RESPONSE = TypeAdapter(ChatResponse)


def parse_body(adapter: TypeAdapter[T], raw: bytes) -> T:
    """Raises `Malformed` naming the faults. Depth is bounded by the parser, size by the door."""
    try:
        return adapter.validate_json(raw, strict=True)
    except ValidationError as error:
        raise Malformed(describe_faults(error)) from None


def describe_faults(error: ValidationError) -> str:
    """The first faults in words, without what was sent: it may be somebody's text."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    told = [f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg']}" for fault in found[:MAX_FAULTS]]
    return "; ".join(told)


def resolve_id(given: str | None, idempotency_key: str | None, name: str = "event_id") -> str | None:
    """The id that the caller gave, in the body (as `name`) or in the header. Raises `Rejected` where they differ."""
    if idempotency_key is None:
        return given
    if given is not None and given != idempotency_key:
        raise Rejected(f"{name} and Idempotency-Key differ: send one of them, or the same in both")
    return _id(idempotency_key)


def _id(value: str) -> str:
    try:
        return TypeAdapter(Id).validate_python(value)
    except ValidationError:
        raise Malformed("Idempotency-Key: 1 to 128 printable ASCII characters without spaces") from None


def to_event(body: FeedbackBody, *, event_id: str, line: str, pseudonym: str, now: datetime) -> Feedback:
    """The record. Raises `Malformed` (a value that does not fit its kind) or `Rejected` (`refuse_time`)."""
    check_time("occurred_at", body.occurred_at, now)
    said = body.model_dump(mode="json", exclude_none=True)
    try:
        return _strict(
            FEEDBACK,
            said | _known(line=body.line or line, user_id=pseudonym, event_id=event_id, received_at=now),
        )
    except ValidationError as error:
        raise Malformed(_without_tag(describe_faults(error), body.kind)) from None


def to_response(body: ResponseBody, *, line: str, pseudonym: str | None, now: datetime) -> ChatResponse:
    """The record. Raises `Malformed` or `Rejected` (`refuse_time`)."""
    check_time("created_at", body.created_at, now)
    said = body.model_dump(mode="json", exclude_none=True, exclude={"user_id"})
    known = _known(line=body.line or line, created_at=body.created_at or now)
    known |= {} if pseudonym is None else {"user_id": pseudonym}
    try:
        return _strict(_RESPONSE, said | known)
    except ValidationError as error:
        raise Malformed(describe_faults(error)) from None


def check_time(field: str, moment: datetime | None, now: datetime) -> None:
    """Raise `Rejected` if a user's time is out of range.

    Times are compared without conversion to UTC, which overflows for year 1 at +14:00 and for year 9999 at -14:00.
    """
    if moment is None or EARLIEST <= moment <= now + FUTURE:
        return
    fault = f"before {rfc3339(EARLIEST)}" if moment < EARLIEST else "more than a day in the future"
    raise Rejected(
        f"{field} is {fault}: times {ACCEPTED_TIMES} are accepted. Check the clock and the time zone, or leave the "
        "field out"
    )


def _known(**facts: Any) -> dict[str, Any]:
    return {name: fact.isoformat() if isinstance(fact, datetime) else fact for name, fact in facts.items()}


def _strict(adapter: TypeAdapter[T], fields: dict[str, Any]) -> T:
    """As JSON, where strict still takes times as strings but no "5" for 5 and no true for 1."""
    return adapter.validate_json(json.dumps(fields), strict=True)


def _without_tag(faults: str, kind: str) -> str:
    """`thumbs.value: ...` becomes `value: ...`: callers know nothing of our classes."""
    return "; ".join(fault.removeprefix(f"{kind}.") for fault in faults.split("; "))
