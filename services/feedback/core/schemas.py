"""Request bodies of the feedback API, and their conversion to records of the log.

`docs/decisions/ids-and-values.md` says which ids, numbers, texts and times are accepted, and why.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from shared.chat_messages import CONTENT_TAGS, ChatMessage, ContentText, EarlierToolCall
from shared.errors import Malformed, Oversized, Rejected
from shared.events import (
    EARLIEST,
    FEEDBACK,
    MAX_CHOICES,
    MAX_MESSAGES,
    MAX_TAGS,
    MAX_TOKENS,
    MAX_TOOL_CALLS,
    ChatResponse,
    Choice,
    Feedback,
    Id,
    Line,
    Metadata,
    Milliseconds,
    Preference,
    Retract,
    Tag,
    ToolCall,
    ToolFunction,
    Usage,
    rfc3339,
)
from shared.feedback_kinds import FEEDBACK_KINDS, KIND_BY_NAME, list_names
from shared.limits import MAX_EVENT_BYTES, MAX_RESPONSE_BYTES
from shared.request_values import WHOLE_NUMBER, Time, check_json_numbers, readable_fault
from shared.user_ids import NO_CONTROL_CHARACTERS, OptionalUserId, UserId

MAX_CLOCK_LEAD: Final = timedelta(days=1)
"""How far ahead of ours a user's clock may be."""
ACCEPTED_TIMES: Final = f"from {rfc3339(EARLIEST)} until one day in the future"
MAX_FAULTS: Final = 5
MAX_TAG: Final = 64
ShortText = Annotated[str, Field(min_length=1, max_length=256, pattern=NO_CONTROL_CHARACTERS)]
ChoiceIndex = Annotated[int, Field(ge=0, lt=MAX_CHOICES), WHOLE_NUMBER]
TokenCount = Annotated[int, Field(ge=0, le=MAX_TOKENS), WHOLE_NUMBER]
PlainTag = Annotated[Tag, Field(pattern=NO_CONTROL_CHARACTERS)]
TagList = Annotated[list[PlainTag], Field(max_length=MAX_TAGS)]
TagMap = Annotated[
    dict[
        Annotated[str, Field(min_length=1, max_length=MAX_TAG, pattern=r"^[^\x00-\x1f\x7f-\x9f=]+$")],
        Annotated[str, Field(max_length=MAX_TAG, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")],
    ],
    Field(max_length=MAX_TAGS),
]
T = TypeVar("T")


class Body(BaseModel):
    """Base of the request bodies.

    Unknown fields are errors, so a misspelled field is reported and not ignored. Null is the same as no field.
    """

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
    choice: ChoiceIndex | None = Field(
        None, description="Index of the choice that the feedback is about; the default is 0."
    )
    user_id: UserId = Field(description="Your id for the user. Only a pseudonym of it is stored.")
    kind: str = Field(max_length=32, description=f"{list_names([*KIND_BY_NAME, 'retract'], 'or')}.")
    value: JsonValue = Field(
        description="By kind: "
        + "; ".join([*(kind.value_help for kind in FEEDBACK_KINDS), "the event_id to retract."])
    )
    tags: TagList | TagMap | None = Field(
        None,
        union_mode="left_to_right",
        description="Your labels, as a list, or as a map whose entries are stored as `name=value`. They are kept with "
        f"the feedback in batches and exported datasets. At most {MAX_TAGS} of {MAX_TAG} characters.",
    )
    occurred_at: Time | None = Field(
        None, description=f"When the user gave the feedback, {ACCEPTED_TIMES}; the default is now."
    )


class InputPart(BaseModel):
    """Base of the parts that OpenAI clients hold. Their other fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class AnswerMessage(InputPart):
    """The message of an answer, in OpenAI's form."""

    role: Literal["assistant"] | None = None
    content: ContentText | None = None
    refusal: ContentText | None = None
    tool_calls: Annotated[list[EarlierToolCall], Field(max_length=MAX_TOOL_CALLS)] | None = None


class ChoiceBody(InputPart):
    """One answer: its `text`, or the `message` of OpenAI's choice."""

    index: ChoiceIndex | None = Field(None, description="The default is its position in the list.")
    text: ContentText | None = None
    message: AnswerMessage | None = None
    finish_reason: Annotated[str, Field(max_length=MAX_TAG)] | None = None
    tool_calls: Annotated[list[EarlierToolCall], Field(max_length=MAX_TOOL_CALLS)] | None = None

    @model_validator(mode="after")
    def _require_an_answer(self) -> ChoiceBody:
        if self.text is None and self.message is None and not self.tool_calls:
            raise ValueError("a choice needs its answer: send `text`, or OpenAI's `message`")
        if self.text is not None and self.message is not None:
            raise ValueError("a choice has either `text` or `message`: leave one of them out")
        return self

    def to_choice(self, position: int) -> Choice:
        """Return the choice as records have it."""
        message = self.message or AnswerMessage()
        calls = [*(self.tool_calls or ()), *(message.tool_calls or ())]
        return Choice(
            index=position if self.index is None else self.index,
            text=self.text or message.content or message.refusal or "",
            finish_reason=self.finish_reason,
            tool_calls=tuple(_to_call(call) for call in calls) or None,
        )


class UsageBody(InputPart):
    """Token counts, in OpenAI's form."""

    prompt_tokens: TokenCount | None = None
    completion_tokens: TokenCount | None = None

    def to_usage(self) -> Usage:
        """Return the counts as records have them."""
        return Usage(prompt_tokens=self.prompt_tokens or 0, completion_tokens=self.completion_tokens or 0)


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
    choices: list[ChoiceBody] | None = Field(
        None,
        max_length=MAX_CHOICES,
        description="The answers. They may be missing only if `status` is not `completed`.",
    )
    status: Literal["completed", "failed", "cancelled"] | None = Field(
        None, description="The default is `completed`."
    )
    error: Annotated[str, Field(max_length=2048)] | None = Field(None, description="Why the request failed.")
    user_id: OptionalUserId = Field(
        None,
        description="Your id for the user who asked, so that an erasure finds the response. Only a pseudonym of it is "
        "stored.",
    )
    metadata: Metadata | None = Field(None, description="Up to 16 labels of your own, as in OpenAI's API.")
    usage: UsageBody | None = None
    latency_ms: Milliseconds | None = Field(None, description="From the request to the end of the answer.")
    first_token_ms: Milliseconds | None = None
    created_at: Time | None = Field(
        None, description=f"When the model answered, {ACCEPTED_TIMES}; the default is now."
    )


class ErasureBody(Body):
    """Request to erase all data of one user (`POST /v1/erasure`). Send `user_id` or `subject`."""

    user_id: UserId | None = Field(
        None, description="Your id for the user. Only a pseudonym of it is stored."
    )
    subject: Id | None = Field(
        None,
        description="Instead of `user_id`: the id that is stored on the topics. For apps that write to Kafka with "
        "pseudonyms of their own.",
    )
    request_id: Id | None = Field(
        None, description="Your id for the request. Sending it again under the same id has no further effect."
    )
    line: Line | None = Field(None, description="Line of the request; the default is this deployment's line.")

    @model_validator(mode="after")
    def _require_one_user(self) -> ErasureBody:
        if (self.user_id is None) == (self.subject is None):
            raise ValueError("send either `user_id` or `subject`")
        return self

    def subject_of(self, pseudonym_of: Callable[[str], str]) -> str:
        """Return the pseudonym of the user to erase."""
        return self.subject if self.subject is not None else pseudonym_of(str(self.user_id))


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
    check_json_numbers(raw)
    try:
        return adapter.validate_json(raw, strict=True)
    except ValidationError as error:
        raise Malformed(describe_faults(error)) from None


def describe_faults(error: ValidationError) -> str:
    """Return the first faults in a sentence, without the input: it may be a user's text."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)[:MAX_FAULTS]
    return "; ".join(f"{_path(fault['loc'])}: {readable_fault(fault)}" for fault in faults)


def _path(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location if part not in _NO_FIELD) or "body"


_NO_FIELD: Final = CONTENT_TAGS | {"constrained-list", "constrained-dict"}


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
            f"{name} is not a valid id: send 1 to 128 printable ASCII characters without spaces, not only one or two "
            "dots"
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
        Rejected: if `occurred_at` is out of range, or nothing could ever be done with the event.
        Oversized: if the record would be larger than the room that a batch keeps for it.

    """
    check_time("occurred_at", body.occurred_at, now)
    fields = {
        "line": body.line or line,
        "response_id": body.response_id,
        "event_id": event_id,
        "choice": body.choice or 0,
        "user_id": pseudonym,
        "tags": _tag_texts(body.tags),
        "occurred_at": body.occurred_at,
        "received_at": now,
        "kind": body.kind,
        "value": _whole(body.value),
    }
    try:
        event = FEEDBACK.validate_python(fields, strict=True)
    except ValidationError as error:
        raise Malformed(_without_tag(describe_faults(error), body.kind)) from None
    _check_use(event)
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
        Rejected: if `created_at` is out of range, or two choices have one index.
        Oversized: if a batch could not hold the response and feedback on it.

    """
    check_time("created_at", body.created_at, now)
    status = body.status or "completed"
    choices = tuple(choice.to_choice(position) for position, choice in enumerate(body.choices or ()))
    if not choices and status == "completed":
        raise Malformed("choices: a completed response needs its answers: send at least one choice")
    if len({choice.index for choice in choices}) < len(choices):
        raise Rejected(
            "choices: two choices have the same index, so feedback could not name one: number them"
        )
    fields = {
        "line": body.line or line,
        "response_id": body.response_id,
        "version": body.version,
        "messages": tuple(message.to_message() for message in body.messages),
        "choices": choices,
        "status": status,
        "error": body.error,
        "user_id": pseudonym,
        "metadata": body.metadata or {},
        "usage": (body.usage or UsageBody()).to_usage(),
        "latency_ms": body.latency_ms,
        "first_token_ms": body.first_token_ms,
        "created_at": body.created_at or now,
    }
    try:
        response = _RESPONSE.validate_python(fields, strict=True)
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


def _check_use(event: Feedback) -> None:
    """Raise `Rejected` if nothing could ever be done with the event."""
    if isinstance(event, Retract):
        if event.value == event.event_id:
            raise Rejected("value: an event cannot retract itself: send the event_id of the earlier event")
        return
    other: Any = event.value
    if isinstance(event, Preference):
        other = next(iter(dict(event.value).values()))
        if other == event.choice and isinstance(other, int):
            raise Rejected(
                "value: the preference compares a choice with itself: name another choice, or the text of the other "
                "answer"
            )
    if isinstance(other, str) and not other.strip():
        raise Rejected("value: the text is blank: send what the user wrote")


def _whole(value: JsonValue) -> JsonValue:
    """Return a rating, or the choices in a preference, as whole numbers if they were sent as 5.0."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: _whole(part) if isinstance(part, float) else part for name, part in value.items()}
    return value


def _tag_texts(tags: list[str] | dict[str, str] | None) -> tuple[str, ...]:
    """Return tags as records have them. Entries of a map are sorted, so that its order makes no other event."""
    if isinstance(tags, dict):
        return tuple(sorted(f"{name}={value}" for name, value in tags.items()))
    return tuple(tags or ())


def _to_call(call: EarlierToolCall) -> ToolCall:
    function = ToolFunction(name=call.function.name, arguments=call.function.arguments)
    return ToolCall(id=call.id, type="function", function=function)


def _without_tag(faults: str, kind: str) -> str:
    """Turn `thumbs.value: ...` into `value: ...`, the field that the caller knows."""
    return "; ".join(fault.removeprefix(f"{kind}.") for fault in faults.split("; "))
