"""Records of the two topics that apps may write: `chat.responses` and `feedback.events`. No I/O.

The services define the same records (`docs/schemas/`); tests compare both, and the bytes. A record is validated when it
is made, so what the publisher accepts is what the processor accepts.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Annotated, Any, ClassVar, Final, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from loopwright.errors import InvalidRecord
from loopwright.feedback_kinds import FeedbackKind
from loopwright.wire import FeedbackValue

CHAT_RESPONSES: Final = "chat.responses"
FEEDBACK_EVENTS: Final = "feedback.events"
MAX_TEXT: Final = 32_768
"""Maximum number of characters of a text in a feedback event."""
MAX_CONTENT: Final = 524_288
"""Maximum number of characters of a message, an answer, or the arguments of a tool call."""
MAX_MESSAGES: Final = 10_000
MAX_RESPONSE_BYTES: Final = 380_416
"""Maximum size of a response as JSON: a training batch must hold it together with feedback on it."""
MAX_EVENT_BYTES: Final = 139_264
"""Maximum size of a feedback event as JSON."""
MAX_USER_ID: Final = 256
EARLIEST: Final = datetime(2000, 1, 1, tzinfo=timezone.utc)
MAX_CLOCK_LEAD: Final = timedelta(days=1)
MIN_KEY_BYTES: Final = 16
_USER_ID = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

Line = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Id = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^(\.?\.?[!-\-/-~]|\.\.\.)[!-~]*$")]
Content = Annotated[str, Field(max_length=MAX_CONTENT)]
ToolName = Annotated[str, Field(max_length=256)]
NonEmptyText = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
Tag = Annotated[str, Field(min_length=1, max_length=64)]
Tokens = Annotated[int, Field(ge=0, le=1_000_000_000)]
Milliseconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
ChoiceIndex = Annotated[int, Field(ge=0, lt=8)]
T = TypeVar("T")


class Part(BaseModel):
    """Base class of the records and their parts."""

    model_config = ConfigDict(frozen=True)


class LogRecord(Part):
    """Base class of the records. `event_type` is the header `ce_type`."""

    event_type: ClassVar[str]
    schema_version: int = Field(1, ge=1)
    line: Line

    def to_json(self) -> bytes:
        """Return the record as JSON, without fields that are None."""
        return self.model_dump_json(exclude_none=True).encode()


class ToolFunction(Part):
    """The function of a tool call."""

    name: ToolName
    arguments: Content


class ToolCall(Part):
    """A function that the model asked the app to call, in OpenAI's form."""

    id: ToolName
    type: Literal["function"]
    function: ToolFunction


ToolCalls = Annotated[tuple[ToolCall, ...], Field(max_length=128)]


class Message(Part):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content
    name: ToolName | None = None
    tool_calls: ToolCalls | None = None
    tool_call_id: ToolName | None = None


class Choice(Part):
    """One answer of a response."""

    index: ChoiceIndex
    text: Content
    finish_reason: str | None = Field(None, max_length=64)
    tool_calls: ToolCalls | None = None


class Usage(Part):
    """Token counts of a response."""

    prompt_tokens: Tokens = 0
    completion_tokens: Tokens = 0


class ChatResponse(LogRecord):
    """One response of a model to one conversation."""

    event_type = "loopwright.chat.response"
    response_id: Id
    version: str = Field(min_length=1, max_length=256)
    messages: tuple[Message, ...] = Field(min_length=1, max_length=MAX_MESSAGES)
    choices: tuple[Choice, ...] = Field((), max_length=8)
    status: Literal["completed", "failed", "cancelled"] = "completed"
    error: str | None = Field(None, max_length=2048)
    user_id: Id | None = None
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] = Field(
        default_factory=dict, max_length=16
    )
    usage: Usage = Usage()
    latency_ms: Milliseconds | None = None
    first_token_ms: Milliseconds | None = None
    created_at: AwareDatetime


class Over(Part):
    """The answer is preferred over a text or another choice."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    over: NonEmptyText | ChoiceIndex


class Under(Part):
    """A text or another choice is preferred over the answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    under: NonEmptyText | ChoiceIndex


class FeedbackBase(LogRecord):
    """One feedback event."""

    response_id: Id
    event_id: Id
    choice: ChoiceIndex = 0
    user_id: Id
    tags: tuple[Tag, ...] = Field((), max_length=16)
    occurred_at: AwareDatetime | None = None
    received_at: AwareDatetime


class Thumbs(FeedbackBase):
    """Thumbs up or down."""

    event_type = "loopwright.feedback.thumbs"
    kind: Literal["thumbs"] = "thumbs"
    value: Literal["up", "down"]


class Rating(FeedbackBase):
    """A rating from 1 (bad) to 5 (good)."""

    event_type = "loopwright.feedback.rating"
    kind: Literal["rating"] = "rating"
    value: int = Field(ge=1, le=5)


class Correction(FeedbackBase):
    """The answer as it should have been."""

    event_type = "loopwright.feedback.correction"
    kind: Literal["correction"] = "correction"
    value: NonEmptyText


class Comment(FeedbackBase):
    """A remark on the answer."""

    event_type = "loopwright.feedback.comment"
    kind: Literal["comment"] = "comment"
    value: NonEmptyText


class Preference(FeedbackBase):
    """Which of two answers is better."""

    event_type = "loopwright.feedback.preference"
    kind: Literal["preference"] = "preference"
    value: Over | Under


class Retract(FeedbackBase):
    """Withdraws an earlier event of the same user on the same response."""

    event_type = "loopwright.feedback.retract"
    kind: Literal["retract"] = "retract"
    value: Id


Feedback = Annotated[
    Thumbs | Rating | Correction | Comment | Preference | Retract, Field(discriminator="kind")
]
FEEDBACK: TypeAdapter[Feedback] = TypeAdapter(Feedback)
RESPONSE: TypeAdapter[ChatResponse] = TypeAdapter(ChatResponse)


@dataclass(frozen=True, slots=True)
class KafkaRecord:
    """One record to produce. `topic` has no namespace."""

    topic: str
    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...]


class Pseudonymiser:
    """Replaces user ids by a keyed hash, as the services do with `LOOPWRIGHT_PSEUDONYM_KEY`.

    Raises:
        ValueError: The key is shorter than 16 bytes.

    """

    def __init__(self, key: str | bytes) -> None:
        self._key = key.encode() if isinstance(key, str) else key
        if len(self._key) < MIN_KEY_BYTES:
            raise ValueError(
                f"the pseudonym key is shorter than {MIN_KEY_BYTES} bytes; use the LOOPWRIGHT_PSEUDONYM_KEY of the "
                "deployment"
            )

    def of(self, user_id: str) -> str:
        """Return the pseudonym: `u_` and 32 hex digits of HMAC-SHA256.

        Raises:
            InvalidRecord: The user id is empty, too long, or has control characters.

        """
        if len(user_id) > MAX_USER_ID or not _USER_ID.fullmatch(user_id):
            raise InvalidRecord(f"a user id has 1 to {MAX_USER_ID} characters and no control characters")
        normal = unicodedata.normalize("NFC", user_id)
        return "u_" + hmac.new(self._key, normal.encode(), hashlib.sha256).hexdigest()[:32]


class RecordFactory:
    """Makes the records of one app, validated and with CloudEvents headers.

    Args:
        line: Default line of the records.
        source: Name of the app, for the header `ce_source`.
        pseudonymiser: Replaces user ids.

    """

    def __init__(self, *, line: str, source: str, pseudonymiser: Pseudonymiser) -> None:
        self._line = line
        self._source = source
        self._pseudonymiser = pseudonymiser

    def feedback(
        self,
        response_id: str,
        user_id: str,
        kind: FeedbackKind,
        value: FeedbackValue,
        event_id: str,
        *,
        choice: int = 0,
        tags: Sequence[str] = (),
        occurred_at: datetime | None = None,
        line: str | None = None,
        traceparent: str | None = None,
        now: datetime,
    ) -> KafkaRecord:
        """Return the record of a feedback event. Raise `InvalidRecord` if the processor could not use it."""
        _check_time("occurred_at", occurred_at, now)
        fields = {
            "line": line or self._line,
            "response_id": response_id,
            "event_id": event_id,
            "choice": choice,
            "user_id": self._pseudonymiser.of(user_id),
            "tags": list(tags),
            "occurred_at": None if occurred_at is None else occurred_at.isoformat(),
            "received_at": now.isoformat(),
            "kind": kind,
            "value": _whole(value),
        }
        record = _validate(FEEDBACK, fields)
        _check_use(record)
        made = self._record(
            FEEDBACK_EVENTS, record, response_id, _join_ids(response_id, event_id), now, traceparent
        )
        if len(made.value) > MAX_EVENT_BYTES:
            raise InvalidRecord(
                f"the event takes {len(made.value)} bytes as a record; the limit is {MAX_EVENT_BYTES}. Shorten the "
                "text, or remove control characters from it"
            )
        return made

    def response(
        self,
        response_id: str,
        messages: Sequence[Mapping[str, str]],
        choices: Sequence[Mapping[str, Any]],
        *,
        version: str,
        user_id: str | None = None,
        status: Literal["completed", "failed", "cancelled"] = "completed",
        error: str | None = None,
        metadata: Mapping[str, str] | None = None,
        usage: Mapping[str, int] | None = None,
        latency_ms: float | None = None,
        created_at: datetime | None = None,
        line: str | None = None,
        traceparent: str | None = None,
        now: datetime,
    ) -> KafkaRecord:
        """Return the record of a response. Raise `InvalidRecord` if the processor could not use it."""
        _check_time("created_at", created_at, now)
        fields = {
            "line": line or self._line,
            "response_id": response_id,
            "version": version,
            "messages": [dict(message) for message in messages],
            "choices": [dict(choice) for choice in choices],
            "status": status,
            "error": error,
            "user_id": None if user_id is None else self._pseudonymiser.of(user_id),
            "metadata": dict(metadata or {}),
            "usage": dict(usage or {}),
            "latency_ms": latency_ms,
            "created_at": (created_at or now).isoformat(),
        }
        record = _validate(RESPONSE, fields)
        made = self._record(CHAT_RESPONSES, record, response_id, response_id, now, traceparent)
        if len(made.value) > MAX_RESPONSE_BYTES:
            raise InvalidRecord(
                f"the response takes {len(made.value)} bytes as a record; the limit is {MAX_RESPONSE_BYTES}. Shorten "
                "the conversation, for example leave out documents that were only context"
            )
        return made

    def _record(
        self, topic: str, record: LogRecord, key: str, ce_id: str, now: datetime, traceparent: str | None
    ) -> KafkaRecord:
        headers = (
            ("ce_specversion", b"1.0"),
            ("ce_id", ce_id.encode()),
            ("ce_source", f"/loopwright/{self._source}".encode()),
            ("ce_type", record.event_type.encode()),
            ("ce_time", now.astimezone(timezone.utc).isoformat().replace("+00:00", "Z").encode()),
            ("content-type", b"application/json"),
            ("traceparent", _valid_traceparent(traceparent).encode()),
        )
        return KafkaRecord(topic, key.encode(), record.to_json(), headers)


def _validate(adapter: TypeAdapter[T], fields: Mapping[str, Any]) -> T:
    present = {name: value for name, value in fields.items() if value is not None}
    try:
        # Strict validation takes times as strings only from JSON.
        return adapter.validate_json(json.dumps(present), strict=True)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False, include_context=False)[:5]
        raise InvalidRecord(
            "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'record'}: {fault['msg']}" for fault in faults)
        ) from None
    except (TypeError, ValueError) as error:
        raise InvalidRecord(f"the content is not JSON: {error}") from None


def _whole(value: Any) -> Any:
    """Return a rating, or the choices in a preference, as whole numbers if they are given as 5.0."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {name: _whole(part) if isinstance(part, float) else part for name, part in value.items()}
    return value


def _check_use(event: Feedback) -> None:
    """Raise `InvalidRecord` if nothing could ever be done with the event."""
    if isinstance(event, Retract):
        if event.value == event.event_id:
            raise InvalidRecord(
                "value: an event cannot retract itself; give the event_id of the earlier event"
            )
        return
    other: Any = event.value
    if isinstance(event, Preference):
        other = next(iter(dict(event.value).values()))
        if isinstance(other, int) and other == event.choice:
            raise InvalidRecord(
                "value: the preference compares a choice with itself; name another choice or a text"
            )
    if isinstance(other, str) and not other.strip():
        raise InvalidRecord("value: the text is blank; give what the user wrote")


def _check_time(name: str, moment: datetime | None, now: datetime) -> None:
    if moment is None:
        return
    if moment.tzinfo is None:
        raise InvalidRecord(
            f"{name} has no time zone; use an aware datetime, for example datetime.now(timezone.utc)"
        )
    if not EARLIEST <= moment <= now + MAX_CLOCK_LEAD:
        raise InvalidRecord(
            f"{name} is out of range: times from 2000-01-01T00:00:00Z until one day in the future are accepted"
        )


def _join_ids(*ids: str) -> str:
    return "/".join(part.replace("%", "%25").replace("/", "%2F") for part in ids)


def _valid_traceparent(traceparent: str | None) -> str:
    if traceparent is not None and _TRACEPARENT.fullmatch(traceparent):
        return traceparent
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
