"""The records of the log: one class per record type (design section 4).

Every record is JSON, has a `schema_version`, and belongs to a `line`. Readers ignore unknown fields, so a newer writer
never stops an older reader; the meaning of a field never changes. Identity and order:

- `response_id` identifies a response, `choice` one of its answers;
- (`response_id`, `event_id`) identifies a feedback event;
- the highest `revision` of an example is the current one;
- `batch_id` identifies a batch; a higher `rewrite` replaces it completely.

Times are timezone-aware. In the log they are RFC 3339 strings.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from shared.errors import Malformed, Oversized

MAX_RECORD_BYTES = 1_000_000
"""Maximum size of a record on any topic: Kafka's default `message.max.bytes`, less space for headers."""
MAX_TEXT = 32_768
"""Maximum number of characters of a text in a feedback event."""
MAX_CONTENT = 524_288
"""Maximum number of characters of a message, an answer, or the arguments of a tool call. What a batch can hold is the
tighter limit: a whole response takes at most `shared.limits.MAX_RESPONSE_BYTES`."""
MAX_MESSAGES = 10_000
"""Maximum number of messages of a conversation; a response of maximum size has room for about that many."""
MAX_CHOICES = 8
MAX_TOOL_CALLS = 128
MAX_TOOL_NAME = 256
MAX_TAGS = 16
MAX_METADATA = 16
MAX_TOKENS = 1_000_000_000
MAX_SIGNALS = 256
"""Maximum number of signals per response. The processor enforces it, whichever producer wrote the events."""

Line = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Id = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^(\.?\.?[!-\-/-~]|\.\.\.)[!-~]*$")]
"""Printable ASCII without spaces, 1 to 128 characters. Not `.` and not `..`, which clients and proxies remove from the
path of a URL (`docs/decisions/ids-and-values.md`)."""
NonEmptyText = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
Content = Annotated[str, Field(max_length=MAX_CONTENT)]
ToolName = Annotated[str, Field(max_length=MAX_TOOL_NAME)]
"""Name of a function, or id of a call. Models write both, so any text is accepted."""
Tag = Annotated[str, Field(min_length=1, max_length=64)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=MAX_METADATA),
]
"""The app's own labels of a response, with OpenAI's limits."""
Milliseconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
"""A duration in ms, at most about eleven days."""
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""sha256 as lower-case hex."""
VersionName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}@(v[1-9][0-9]*|base)-[0-9a-f]{8}$")]


def canonical_json(value: Any) -> bytes:
    """Return the canonical bytes of a JSON value, over which digests are computed: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha256(data: bytes) -> str:
    """Return the sha256 of `data` as lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def to_ms(moment: datetime) -> int:
    """Return milliseconds since the epoch, the unit of Kafka's timestamps."""
    return round(moment.timestamp() * 1000)


EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
"""The earliest time that users may give. The HTTP API refuses an earlier one; the processor clamps it to this."""
EARLIEST_MS = to_ms(EARLIEST)
MIN_MS = to_ms(datetime(1, 1, 1, tzinfo=UTC))
MAX_MS = to_ms(datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC))
"""The first and the last time that a `datetime` in UTC can hold."""


def from_ms(ms: int) -> datetime:
    """Return the UTC time of `ms` milliseconds since the epoch, clamped to the years 1 to 9999. Never raises."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp((MIN_MS if ms < 0 else MAX_MS) / 1000, UTC)


def rfc3339(moment: datetime) -> str:
    """Return an aware time as records and headers hold it: in UTC, ending in Z, clamped as by `from_ms`."""
    try:
        utc = moment.astimezone(UTC)
    except OverflowError:  # the offset moves it out of the years 1 to 9999
        utc = from_ms(to_ms(moment))
    return utc.isoformat().replace("+00:00", "Z")


class Part(BaseModel):
    """Base of records and of their nested parts. Frozen: records are facts."""

    model_config = ConfigDict(frozen=True, extra="ignore")


T = TypeVar("T")
P = TypeVar("P", bound=Part)


def parse(model: type[P], value: bytes | None) -> P:
    """Parse one record from untrusted bytes. Raises only `Malformed` or `Oversized`."""
    try:
        return model.model_validate_json(check_size(value))
    except ValidationError as error:
        raise malformed(error) from None


def parse_union(adapter: TypeAdapter[T], value: bytes | None) -> T:
    """Parse one record of a union type (`FEEDBACK`, `COMMAND`). Raises only `Malformed` or `Oversized`."""
    try:
        return adapter.validate_json(check_size(value))
    except ValidationError as error:
        raise malformed(error) from None


def check_size(value: bytes | None) -> bytes:
    """Return the value; raise `Malformed` if it is empty, `Oversized` if it exceeds `MAX_RECORD_BYTES`."""
    if value is None:
        raise Malformed("expected a record, got an empty value")
    if len(value) > MAX_RECORD_BYTES:
        raise Oversized(f"the record has {len(value)} bytes; the limit is {MAX_RECORD_BYTES}")
    return value


def malformed(error: ValidationError) -> Malformed:
    """Describe the first fault. The input is left out, because it may be a user's text."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "value"
    return Malformed(f"{error.title}: {where}: {first['msg']}")


class LogRecord(Part):
    """Base of all records. `event_type` becomes the CloudEvents header `ce_type`."""

    event_type: ClassVar[str]
    schema_version: int = Field(1, ge=1)
    line: Line

    def to_json(self) -> bytes:
        """Return the record as JSON, without fields that are None."""
        return self.model_dump_json(exclude_none=True).encode()

    @classmethod
    def from_json(cls, value: bytes | None) -> Self:
        """Parse a record. Raises `Malformed` if it is not JSON or not this record, `Oversized` if it is too large."""
        return parse(cls, value)


# --- chat.responses ---------------------------------------------------------------------------------------------


class ToolFunction(Part):
    """The function of a tool call."""

    name: ToolName
    arguments: Content = Field(description="JSON as the model wrote it. It may be invalid.")


class ToolCall(Part):
    """A function that the model asked the app to call, in OpenAI's form."""

    id: ToolName
    type: Literal["function"]
    function: ToolFunction


ToolCalls = Annotated[tuple[ToolCall, ...], Field(max_length=MAX_TOOL_CALLS)]


class Message(Part):
    """One message of a conversation. `content` is empty if an assistant's message has only tool calls."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content
    name: ToolName | None = Field(None, description="Name of the participant or of the tool.")
    tool_calls: ToolCalls | None = None
    tool_call_id: ToolName | None = Field(None, description="The call that a message of a tool answers.")


class Choice(Part):
    """One answer of a response; a request with `n` > 1 has several. `text` is empty if it has only tool calls."""

    index: int = Field(ge=0, lt=MAX_CHOICES)
    text: Content
    finish_reason: str | None = Field(None, max_length=64)
    tool_calls: ToolCalls | None = None


class Usage(Part):
    """Token counts of a response."""

    prompt_tokens: int = Field(0, ge=0, le=MAX_TOKENS)
    completion_tokens: int = Field(0, ge=0, le=MAX_TOKENS)


class ChatResponse(LogRecord):
    """One response of a model to one conversation. Failed requests are recorded too (`status`)."""

    event_type = "loopwright.chat.response"
    response_id: Id
    version: str = Field(min_length=1, max_length=256)
    messages: tuple[Message, ...] = Field(min_length=1, max_length=MAX_MESSAGES)
    choices: tuple[Choice, ...] = Field((), max_length=MAX_CHOICES)
    status: Literal["completed", "failed", "cancelled"] = "completed"
    error: str | None = Field(None, max_length=2048)
    user_id: Id | None = Field(None, description="Pseudonym of the user, never the id that the caller sent.")
    metadata: Metadata = Field(default_factory=dict)
    usage: Usage = Usage()
    latency_ms: Milliseconds | None = None
    first_token_ms: Milliseconds | None = None
    created_at: AwareDatetime

    def text_of(self, choice: int) -> str | None:
        """Return the text of a choice, or None if the response has no such choice."""
        return next((c.text for c in self.choices if c.index == choice), None)


# --- feedback.events --------------------------------------------------------------------------------------------


class Over(Part):
    """The answer is preferred over another one: a text, or another choice of the same response."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    over: NonEmptyText | Annotated[int, Field(ge=0, lt=MAX_CHOICES)]


class Under(Part):
    """Another answer (a text, or another choice of the same response) is preferred over this one."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    under: NonEmptyText | Annotated[int, Field(ge=0, lt=MAX_CHOICES)]


_DELIVERY = frozenset({"schema_version", "occurred_at", "received_at"})


def _plain(part: Any) -> dict[str, Any]:
    return dict(part)


class FeedbackBase(LogRecord):
    """One feedback event: one statement of one user about one response. Subclasses define `kind` and `value`."""

    response_id: Id
    event_id: Id
    choice: int = Field(0, ge=0, lt=MAX_CHOICES)
    user_id: Id = Field(description="Pseudonym of the user, never the id that the caller sent.")
    tags: tuple[Tag, ...] = Field((), max_length=MAX_TAGS)
    occurred_at: AwareDatetime | None = Field(
        None, description="Time of the feedback. If absent, the append time is used."
    )
    received_at: AwareDatetime

    def content_digest(self) -> str:
        """Return a digest of what the user stated, without delivery fields.

        Two events of one identity are duplicates if their digests are equal, and conflict otherwise.
        """
        content = {name: value for name, value in self.__dict__.items() if name not in _DELIVERY}
        return sha256(orjson.dumps(content, default=_plain, option=orjson.OPT_SORT_KEYS))


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
    """A remark on the answer in free text."""

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
    value: Id = Field(description="The event_id to retract.")


Feedback = Annotated[
    Thumbs | Rating | Correction | Comment | Preference | Retract, Field(discriminator="kind")
]
FEEDBACK: TypeAdapter[Feedback] = TypeAdapter(Feedback)
SignalKind = Literal["thumbs", "rating", "correction", "comment", "preference"]
"""Kinds of feedback except `retract`. `shared.feedback_kinds` describes them; a test compares both, and `Tally`."""
SignalValue = Over | Under | int | str


class Signal(Part):
    """A current feedback event within an example."""

    event_id: Id
    kind: SignalKind
    user_id: Id
    choice: int = 0
    value: SignalValue
    tags: tuple[Tag, ...] = ()
    occurred_at: AwareDatetime


# --- training.batches -------------------------------------------------------------------------------------------


class ExampleRevision(LogRecord):
    """One response with all its current signals. The op `retract` means that it must no longer be trained."""

    event_type = "loopwright.example"
    response_id: Id
    revision: int = Field(ge=1)
    op: Literal["upsert", "retract"]
    version: str
    user_id: Id | None = Field(
        None, description="Pseudonym of the asking user. Erasing this user removes the whole example."
    )
    messages: tuple[Message, ...] = ()
    choices: tuple[Choice, ...] = ()
    signals: tuple[Signal, ...] = Field((), max_length=MAX_SIGNALS)
    responded_at: AwareDatetime
    revised_at: AwareDatetime


class Batch(LogRecord):
    """An immutable, numbered group of example revisions, each of a different response."""

    event_type = "loopwright.batch"
    batch_id: Id
    partition: int = Field(ge=0)
    number: int = Field(ge=1)
    rewrite: int = Field(0, ge=0)
    reason: Literal["count", "bytes", "age", "erasure"]
    examples: tuple[ExampleRevision, ...]
    content_hash: Digest
    cut_at: AwareDatetime

    @staticmethod
    def hash_of(examples: tuple[ExampleRevision, ...]) -> str:
        """Return the content hash of a batch with these examples."""
        return sha256(b"\n".join(example.to_json() for example in examples))


# --- feedback.outcomes, feedback.tallies, response.samples ------------------------------------------------------------


class OutcomeKind(StrEnum):
    """Final outcome of a feedback event. Each event gets exactly one; `pending` means that it has none yet.

    `refused` is valid but cannot be applied (`RefusalReason`); `dead` could not be read, or met a bug.
    """

    BATCHED = "batched"
    SUPERSEDED = "superseded"
    DUPLICATE = "duplicate"
    RETRACTED = "retracted"
    APPLIED_RETRACT = "applied_retract"
    TALLY_ONLY = "tally_only"
    UNMATCHED = "unmatched"
    LATE = "late"
    REFUSED = "refused"
    DEAD = "dead"
    ERASED = "erased"


class RefusalReason(StrEnum):
    """Why a valid record was `refused`. The codes are stable; `Outcome.detail` says it in a sentence."""

    CONFLICT = "conflict"
    """Another record with this id and other content came first."""
    NOT_YOURS = "not_yours"
    """It retracts another user's event, or a retraction."""
    TOO_MANY = "too_many"
    """The user or the response has as much feedback as is kept."""
    TOO_LARGE = "too_large"
    """With it, the example would be larger than a batch may be."""
    RESPONSE_LATE = "response_late"
    """The response came again after its window, so it cannot be compared with the first one any more."""
    UNUSABLE = "unusable"
    """Its stored content could not be processed, so it was set aside."""


class Outcome(LogRecord):
    """The outcome of one feedback event or, without an `event_id`, of a response that was refused."""

    event_type = "loopwright.outcome"
    response_id: Id
    event_id: Id | None = Field(None, description="Absent if the outcome is about the response itself.")
    outcome: OutcomeKind
    batch_id: Id | None = None
    revision: int | None = None
    reason: RefusalReason | None = Field(None, description="Set if the outcome is `refused`.")
    detail: str | None = Field(None, max_length=1024)
    decided_at: AwareDatetime

    @property
    def is_repetition(self) -> bool:
        """Whether it is about another record with the same id, so that the event has an outcome of its own."""
        return self.outcome is OutcomeKind.DUPLICATE or self.reason is RefusalReason.CONFLICT


class Tally(LogRecord):
    """Absolute counters of one user's feedback on one version, as seen by one partition."""

    event_type = "loopwright.tally"
    version: str
    user_id: Id
    partition: int = Field(ge=0)
    up: int = 0
    down: int = 0
    ratings: int = 0
    rating_sum: int = 0
    corrections: int = 0
    comments: int = 0
    preferences: int = 0
    vote: float | None = Field(
        None, ge=0, le=1, description="Satisfaction that the newest counted feedback states, from 0 to 1."
    )
    vote_on: AwareDatetime | None = Field(
        None, description="When the response that it is about was recorded."
    )
    updated_at: AwareDatetime


class ResponseSample(LogRecord):
    """One recorded response of a user without its text: what the rollout watches during a canary."""

    event_type = "loopwright.response.sample"
    version: str = Field(min_length=1, max_length=256)
    user_id: Id
    failed: bool
    latency_ms: Milliseconds | None = None
    responded_at: AwareDatetime


class ErasureRequest(LogRecord):
    """A request to remove all content of `subject` (a pseudonym) from topics, datasets, snapshots, reports and caches.

    Content that the subject creates after `requested_at` is not affected.
    """

    event_type = "loopwright.erasure"
    request_id: Id
    subject: Id
    issued_by: str = Field("operator", max_length=128, description="Name of the API key that requested it.")
    requested_at: AwareDatetime
    deadline: AwareDatetime = Field(description="Time by which no content of the subject is left.")


class ErasureReport(LogRecord):
    """What one service has erased.

    The processor writes one report per partition; the trainer writes one per line, after it has received all of those
    and has applied them. Reports hold names and counts, never content.
    """

    event_type = "loopwright.erasure.report"
    request_id: Id = Field(
        description="Id of the erasure; for a late retraction `retract:` and a digest of response_id and event_id."
    )
    kind: Literal["erasure", "retraction"] = "erasure"
    subject: Id = Field(description="Pseudonym of the erased user, or of the user who retracted.")
    response_id: Id | None = Field(None, description="Set for a retraction: only this event is removed.")
    event_id: Id | None = None
    service: Literal["processor", "trainer"]
    partition: int | None = Field(None, ge=0, description="Set in reports of the processor.")
    partitions: int | None = Field(None, ge=1, description="Number of reports that the processor will write.")
    responses: int = Field(0, ge=0, description="Responses removed from the join state.")
    signals: int = Field(0, ge=0, description="Signals removed from the join state and from batches.")
    batches: dict[str, int] = Field(
        default_factory=dict,
        description="batch_id -> first `rewrite` without the content. Set by the processor.",
    )
    versions: tuple[VersionName, ...] = Field(
        (), description="Versions that were trained on it. Set by the trainer."
    )
    snapshots: int = Field(0, ge=0, description="Snapshots that it was removed from. Set by the trainer.")
    completed_at: AwareDatetime
