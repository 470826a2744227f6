"""The records on the log: what each topic carries, one class each (design section 4).

Every record is JSON, has a `schema_version`, and belongs to a `line`. Readers ignore fields they do not know, so a
newer writer never stops an older reader; a field once written is never given another meaning. Identity and order:

- a response is named by `response_id`, one of its answers by `choice`;
- a feedback event by (`response_id`, `event_id`);
- an example's newest `revision` is the true one;
- a batch by `batch_id`; a higher `rewrite` replaces it whole.

Times are timezone-aware; on the log they are RFC 3339 strings.
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
"""No record on any topic is larger: Kafka's default `message.max.bytes` less room for headers."""
MAX_TEXT = 32_768
MAX_MESSAGES = 64
MAX_CHOICES = 8
MAX_TAGS = 16
MAX_SIGNALS = 256
"""Signals held per response; the cap is applied by the processor, whatever a door let through."""

Line = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Id = Annotated[str, Field(pattern=r"^[!-~]{1,128}$")]
"""Printable ASCII without spaces, 1 to 128 characters."""
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Words = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
Tag = Annotated[str, Field(min_length=1, max_length=64)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""sha256 as lower-case hex."""
VersionName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}@(v[1-9][0-9]*|base)-[0-9a-f]{8}$")]


def canonical_json(value: Any) -> bytes:
    """The one byte form of a JSON value that digests are taken over: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def to_ms(moment: datetime) -> int:
    """Milliseconds since the epoch, the unit of Kafka's timestamps."""
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
    """A piece of a record. Frozen: records are facts."""

    model_config = ConfigDict(frozen=True, extra="ignore")


T = TypeVar("T")
P = TypeVar("P", bound=Part)


def parse(model: type[P], value: bytes | None) -> P:
    """Reads one record of untrusted bytes. Raises `Malformed` or `Oversized`, never anything else."""
    try:
        return model.model_validate_json(bounded(value))
    except ValidationError as error:
        raise malformed(error) from None


def parse_union(adapter: TypeAdapter[T], value: bytes | None) -> T:
    """As `parse`, for a record that is one of several kinds (`FEEDBACK`, `COMMAND`)."""
    try:
        return adapter.validate_json(bounded(value))
    except ValidationError as error:
        raise malformed(error) from None


def bounded(value: bytes | None) -> bytes:
    if value is None:
        raise Malformed("an empty value where a record was expected")
    if len(value) > MAX_RECORD_BYTES:
        raise Oversized(f"{len(value)} bytes; at most {MAX_RECORD_BYTES} are read")
    return value


def malformed(error: ValidationError) -> Malformed:
    """The first fault in words, without the input: it may be somebody's text."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "value"
    return Malformed(f"{error.title}: {where}: {first['msg']}")


class LogRecord(Part):
    """What every record has. `event_type` becomes the CloudEvents `ce_type`."""

    event_type: ClassVar[str]
    schema_version: int = Field(1, ge=1)
    line: Line

    def to_json(self) -> bytes:
        return self.model_dump_json(exclude_none=True).encode()

    @classmethod
    def from_json(cls, value: bytes | None) -> Self:
        """Raises `Malformed` (not JSON, or not this record) or `Oversized`."""
        return parse(cls, value)


# --- chat.responses ---------------------------------------------------------------------------------------------


class Message(Part):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text


class Choice(Part):
    index: int = Field(ge=0, lt=MAX_CHOICES)
    text: Text
    finish_reason: str | None = None


class Usage(Part):
    prompt_tokens: int = Field(0, ge=0)
    completion_tokens: int = Field(0, ge=0)


class ChatResponse(LogRecord):
    """One answer of a model to one conversation so far. Failed requests are recorded too (`status`)."""

    event_type = "loopwright.chat.response"
    response_id: Id
    version: str = Field(min_length=1, max_length=256)
    messages: tuple[Message, ...] = Field(min_length=1, max_length=MAX_MESSAGES)
    choices: tuple[Choice, ...] = Field((), max_length=MAX_CHOICES)
    status: Literal["completed", "failed", "cancelled"] = "completed"
    error: str | None = Field(None, max_length=2048)
    user_id: Id | None = Field(None, description="pseudonym, never the caller's own id")
    metadata: dict[str, str] = Field(default_factory=dict, max_length=16)
    usage: Usage = Usage()
    latency_ms: float | None = Field(None, ge=0)
    first_token_ms: float | None = Field(None, ge=0)
    created_at: AwareDatetime

    def text_of(self, choice: int) -> str | None:
        return next((c.text for c in self.choices if c.index == choice), None)


# --- feedback.events --------------------------------------------------------------------------------------------


class Over(Part):
    """This answer is preferred over that one (a text, or another choice of the same response)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    over: Words | Annotated[int, Field(ge=0, lt=MAX_CHOICES)]


class Under(Part):
    """That one (a text, or another choice) is preferred over this answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    under: Words | Annotated[int, Field(ge=0, lt=MAX_CHOICES)]


_DELIVERY = frozenset({"schema_version", "occurred_at", "received_at"})


def _plain(part: Any) -> dict[str, Any]:
    return dict(part)


class FeedbackBase(LogRecord):
    """One thing a user said about one response. Subclasses give `kind` and the type of `value`."""

    response_id: Id
    event_id: Id
    choice: int = Field(0, ge=0, lt=MAX_CHOICES)
    user_id: Id = Field(description="pseudonym, never the caller's own id")
    tags: tuple[Tag, ...] = Field((), max_length=MAX_TAGS)
    occurred_at: AwareDatetime | None = Field(None, description="the user's time; absent = the append time")
    received_at: AwareDatetime

    def content_digest(self) -> str:
        """Says whether two events under one identity are the same: all that the user said, none of the delivery."""
        said = {name: value for name, value in self.__dict__.items() if name not in _DELIVERY}
        return sha256(orjson.dumps(said, default=_plain, option=orjson.OPT_SORT_KEYS))


class Thumbs(FeedbackBase):
    event_type = "loopwright.feedback.thumbs"
    kind: Literal["thumbs"] = "thumbs"
    value: Literal["up", "down"]


class Rating(FeedbackBase):
    event_type = "loopwright.feedback.rating"
    kind: Literal["rating"] = "rating"
    value: int = Field(ge=1, le=5)


class Correction(FeedbackBase):
    event_type = "loopwright.feedback.correction"
    kind: Literal["correction"] = "correction"
    value: Words


class Comment(FeedbackBase):
    event_type = "loopwright.feedback.comment"
    kind: Literal["comment"] = "comment"
    value: Words


class Preference(FeedbackBase):
    event_type = "loopwright.feedback.preference"
    kind: Literal["preference"] = "preference"
    value: Over | Under


class Retract(FeedbackBase):
    event_type = "loopwright.feedback.retract"
    kind: Literal["retract"] = "retract"
    value: Id = Field(description="the event_id to take back")


Feedback = Annotated[
    Thumbs | Rating | Correction | Comment | Preference | Retract, Field(discriminator="kind")
]
FEEDBACK: TypeAdapter[Feedback] = TypeAdapter(Feedback)
SignalKind = Literal["thumbs", "rating", "correction", "comment", "preference"]
SignalValue = Over | Under | int | str


class Signal(Part):
    """What stands of a feedback event in an example."""

    event_id: Id
    kind: SignalKind
    user_id: Id
    choice: int = 0
    value: SignalValue
    tags: tuple[Tag, ...] = ()
    occurred_at: AwareDatetime


# --- training.batches -------------------------------------------------------------------------------------------


class ExampleRevision(LogRecord):
    """One response with all its live signals. `retract` says that nothing of it may be trained any more."""

    event_type = "loopwright.example"
    response_id: Id
    revision: int = Field(ge=1)
    op: Literal["upsert", "retract"]
    version: str
    user_id: Id | None = Field(None, description="pseudonym of who asked; an erasure of theirs takes it all")
    messages: tuple[Message, ...] = ()
    choices: tuple[Choice, ...] = ()
    signals: tuple[Signal, ...] = Field((), max_length=MAX_SIGNALS)
    responded_at: AwareDatetime
    revised_at: AwareDatetime


class Batch(LogRecord):
    """An immutable, numbered group of example revisions, each of another response."""

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
        return sha256(b"\n".join(example.to_json() for example in examples))


# --- feedback.outcomes, feedback.tallies, dead.letters ----------------------------------------------------------


class OutcomeKind(StrEnum):
    """What became of a feedback event. Each event gets exactly one; `pending` is the absence of one."""

    BATCHED = "batched"
    SUPERSEDED = "superseded"
    DUPLICATE = "duplicate"
    RETRACTED = "retracted"
    APPLIED_RETRACT = "applied_retract"
    TALLY_ONLY = "tally_only"
    UNMATCHED = "unmatched"
    LATE = "late"
    DEAD = "dead"
    ERASED = "erased"


class Outcome(LogRecord):
    event_type = "loopwright.outcome"
    response_id: Id
    event_id: Id
    outcome: OutcomeKind
    batch_id: Id | None = None
    revision: int | None = None
    detail: str | None = Field(None, max_length=1024)
    decided_at: AwareDatetime


class Tally(LogRecord):
    """Absolute counters of one user's reactions to one version, as one partition has seen them."""

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
    updated_at: AwareDatetime


class ErasureRequest(LogRecord):
    """Everything of `subject` (a pseudonym) is to leave every topic, dataset, snapshot, report and cache.

    What the subject says or asks after `requested_at` is new, and stays.
    """

    event_type = "loopwright.erasure"
    request_id: Id
    subject: Id
    requested_at: AwareDatetime
    deadline: AwareDatetime = Field(description="by when nothing of it is left anywhere")


class ErasureReport(LogRecord):
    """What one part of the loop has erased. The processor writes one per partition, the trainer one for its line once
    it has all of these and has followed them. Holds names and counts, never content."""

    event_type = "loopwright.erasure.report"
    request_id: Id = Field(
        description="of the erasure; of a late retraction `retract:<response_id>/<event_id>`"
    )
    kind: Literal["erasure", "retraction"] = "erasure"
    subject: Id = Field(description="whose; of a retraction, who took it back")
    response_id: Id | None = Field(None, description="of a retraction: it concerns this event alone")
    event_id: Id | None = None
    service: Literal["processor", "trainer"]
    partition: int | None = Field(None, ge=0, description="of the processor's reports")
    partitions: int | None = Field(None, ge=1, description="how many reports of the processor there will be")
    responses: int = Field(0, ge=0, description="responses dropped from the join")
    signals: int = Field(0, ge=0, description="signals dropped from the join and from batches")
    batches: dict[str, int] = Field(
        default_factory=dict, description="batch_id -> the `rewrite` without it; of the processor's reports"
    )
    versions: tuple[VersionName, ...] = Field((), description="trained from it; of the trainer's report")
    snapshots: int = Field(0, ge=0, description="snapshots it was taken out of; of the trainer's report")
    completed_at: AwareDatetime
