"""Request bodies of the feedback API, and their conversion to records of the log."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, TypeVar

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from shared.chat_messages import CONTENT_TAGS, ChatMessage
from shared.errors import Malformed, Oversized, Rejected
from shared.events import (
    EARLIEST,
    FEEDBACK,
    MAX_CHOICES,
    MAX_MESSAGES,
    MAX_TAGS,
    ChatResponse,
    Choice,
    Feedback,
    Id,
    Line,
    Metadata,
    Milliseconds,
    Tag,
    Usage,
    rfc3339,
)
from shared.feedback_kinds import FEEDBACK_KINDS, KIND_BY_NAME, list_names
from shared.limits import MAX_EVENT_BYTES, MAX_RESPONSE_BYTES
from shared.user_ids import NO_CONTROL_CHARACTERS, UserId

MAX_CLOCK_LEAD: Final = timedelta(days=1)
"""How far ahead of ours a user's clock may be."""
ACCEPTED_TIMES: Final = f"from {rfc3339(EARLIEST)} until one day in the future"
MAX_FAULTS: Final = 5
ShortText = Annotated[str, Field(min_length=1, max_length=256, pattern=NO_CONTROL_CHARACTERS)]
T = TypeVar("T")


class Body(BaseModel):
    """Base of the request bodies. Unknown fields are errors, so a misspelled field is reported and not ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FeedbackBody(Body):
    """One statement of a user about one response (`POST /v1/feedback`)."""

    event_id: Id | None = Field(
        None,
        description="Your id for the event. Sending the event again under the same id has no further effect.",
    )
    line: Line | None = Field(
        None, description="Line of the response; the default is this deployment's line."
    )
    response_id: Id = Field(description="The `id` of the chat completion.")
    choice: int = Field(0, description="Index of the choice that the feedback is about.")
    user_id: UserId = Field(description="Your id for the user. Only a pseudonym of it is stored.")
    kind: str = Field(max_length=32, description=f"{list_names([*KIND_BY_NAME, 'retract'], 'or')}.")
    value: JsonValue = Field(
        description="By kind: "
        + "; ".join([*(kind.value_help for kind in FEEDBACK_KINDS), "the event_id to retract."])
    )
    tags: Annotated[
        list[Annotated[Tag, Field(pattern=NO_CONTROL_CHARACTERS)]], Field(max_length=MAX_TAGS)
    ] = []
    occurred_at: AwareDatetime | None = Field(
        None, description=f"When the user gave the feedback, {ACCEPTED_TIMES}; the default is now."
    )


class ResponseBody(Body):
    """One response of an app's own model (`POST /v1/responses`)."""

    response_id: Id = Field(description="Your id for the response; feedback refers to it.")
    line: Line | None = Field(
        None, description="Line of the response; the default is this deployment's line."
    )
    version: ShortText = Field(description="Your name for the model that answered.")
    messages: list[ChatMessage] = Field(
        min_length=1,
        max_length=MAX_MESSAGES,
        description="The conversation before the answer, in OpenAI's form.",
    )
    choices: list[Choice] = Field(min_length=1, max_length=MAX_CHOICES)
    status: str = "completed"
    error: str | None = None
    user_id: UserId | None = Field(
        None, description="Your id for the user. Only a pseudonym of it is stored."
    )
    metadata: Metadata = {}
    usage: Usage = Usage()
    latency_ms: Milliseconds | None = None
    first_token_ms: Milliseconds | None = None
    created_at: AwareDatetime | None = Field(
        None, description=f"When the model answered, {ACCEPTED_TIMES}; the default is now."
    )


class ErasureBody(Body):
    """Request to erase all data of one user (`POST /v1/erasure`)."""

    user_id: UserId = Field(description="Your id for the user. Only a pseudonym of it is stored.")
    request_id: Id | None = Field(
        None, description="Your id for the request. Sending it again under the same id has no further effect."
    )
    line: Line | None = Field(None, description="Line of the request; the default is this deployment's line.")


FEEDBACK_BODY = TypeAdapter(FeedbackBody)
RESPONSE_BODY = TypeAdapter(ResponseBody)
ERASURE_BODY = TypeAdapter(ErasureBody)
_RESPONSE = TypeAdapter(ChatResponse)
_ID: TypeAdapter[str] = TypeAdapter(Id)


def parse_body(adapter: TypeAdapter[T], raw: bytes) -> T:
    """Parse a request body.

    The JSON parser bounds its depth; the caller must bound its size.

    Raises:
        Malformed: if it does not fit; the message names the faults.

    """
    try:
        return adapter.validate_json(raw, strict=True)
    except ValidationError as error:
        raise Malformed(describe_faults(error)) from None


def describe_faults(error: ValidationError) -> str:
    """Return the first faults in a sentence, without the input: it may be a user's text."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)[:MAX_FAULTS]
    return "; ".join(f"{_path(fault['loc'])}: {fault['msg']}" for fault in faults)


def _path(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location if part not in CONTENT_TAGS) or "body"


def resolve_id(body_id: str | None, idempotency_key: str | None, name: str = "event_id") -> str | None:
    """Return the caller's id from the body (field `name`) or the Idempotency-Key header; None if neither is given.

    Raises:
        Rejected: if both are given and differ.
        Malformed: if the header is not a valid id.

    """
    if idempotency_key is None:
        return body_id
    if body_id is not None and body_id != idempotency_key:
        raise Rejected(f"{name} and Idempotency-Key differ: send only one of them, or the same id in both")
    return check_id(idempotency_key, "Idempotency-Key")


def check_id(value: str, name: str) -> str:
    """Return an id from a header or a path. Raise `Malformed`, with the field's `name`, if it is not a valid id."""
    try:
        return _ID.validate_python(value)
    except ValidationError:
        raise Malformed(
            f"{name} is not a valid id: send 1 to 128 printable ASCII characters without spaces"
        ) from None


def to_event(body: FeedbackBody, *, event_id: str, line: str, pseudonym: str, now: datetime) -> Feedback:
    """Return the record for `feedback.events`.

    Args:
        body: the request body.
        event_id: the event's id, whether the caller gave it or not.
        line: the line if `body` names none.
        pseudonym: the pseudonym of `body.user_id`.
        now: the time at which the request was received.

    Raises:
        Malformed: if the value does not fit its kind.
        Rejected: if `occurred_at` is out of range.
        Oversized: if the record would be larger than the room that a batch keeps for it.

    """
    check_time("occurred_at", body.occurred_at, now)
    fields = body.model_dump(mode="json", exclude_none=True) | {
        "line": body.line or line,
        "user_id": pseudonym,
        "event_id": event_id,
        "received_at": now.isoformat(),
    }
    try:
        event = _validate(FEEDBACK, fields)
    except ValidationError as error:
        raise Malformed(_without_tag(describe_faults(error), body.kind)) from None
    size = len(event.to_json())
    if size > MAX_EVENT_BYTES:
        raise Oversized(
            f"the event takes {size} bytes as a record; the limit is {MAX_EVENT_BYTES}: shorten the text, or remove "
            "control characters from it"
        )
    return event


def to_response(body: ResponseBody, *, line: str, pseudonym: str | None, now: datetime) -> ChatResponse:
    """Return the record for `chat.responses`. The arguments are those of `to_event`.

    Raises:
        Malformed: if a field is out of bounds.
        Rejected: if `created_at` is out of range.
        Oversized: if a batch could not hold the response and feedback on it.

    """
    check_time("created_at", body.created_at, now)
    messages = [message.to_message().model_dump(mode="json", exclude_none=True) for message in body.messages]
    fields = body.model_dump(mode="json", exclude_none=True, exclude={"user_id", "messages"}) | {
        "messages": messages,
        "line": body.line or line,
        "created_at": (body.created_at or now).isoformat(),
    }
    if pseudonym is not None:
        fields["user_id"] = pseudonym
    try:
        response = _validate(_RESPONSE, fields)
    except ValidationError as error:
        raise Malformed(describe_faults(error)) from None
    size = len(response.to_json())
    if size > MAX_RESPONSE_BYTES:
        raise Oversized(
            f"the response takes {size} bytes as a record; the limit is {MAX_RESPONSE_BYTES}, because it must fit into "
            "one training batch together with feedback on it. Shorten the conversation, for example leave out "
            "documents that were only context"
        )
    return response


def check_time(field: str, moment: datetime | None, now: datetime) -> None:
    """Raise `Rejected` if a user's time is out of range.

    Times are compared without conversion to UTC, which overflows for year 1 at +14:00 and for year 9999 at -14:00.
    """
    if moment is None or EARLIEST <= moment <= now + MAX_CLOCK_LEAD:
        return
    fault = f"before {rfc3339(EARLIEST)}" if moment < EARLIEST else "more than a day in the future"
    raise Rejected(
        f"{field} is {fault}: times {ACCEPTED_TIMES} are accepted. Check the clock and the time zone, or leave the "
        "field out"
    )


def _validate(adapter: TypeAdapter[T], fields: dict[str, Any]) -> T:
    # Strict validation takes times as strings only from JSON, and still refuses "5" for 5 and true for 1.
    try:
        raw: str | bytes = orjson.dumps(fields)
    except TypeError:  # a number that orjson cannot write; the validation refuses it
        raw = json.dumps(fields)
    return adapter.validate_json(raw, strict=True)


def _without_tag(faults: str, kind: str) -> str:
    """Turn `thumbs.value: ...` into `value: ...`, the field that the caller knows."""
    return "; ".join(fault.removeprefix(f"{kind}.") for fault in faults.split("; "))
