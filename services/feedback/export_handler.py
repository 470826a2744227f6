"""Export everything that the log has about one user, as lines of JSON.

What the user wrote is theirs, so it is returned as it is stored. What belongs to others is left out: of an example that
another user asked for, only this user's feedback; of an example that this user asked for, no one else's feedback.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from pydantic import BaseModel, ConfigDict, TypeAdapter, model_validator

from services.feedback.core.schemas import parse_body
from shared.errors import LoopwrightError, Overloaded
from shared.events import Id
from shared.ports import LogRanges
from shared.pseudonym import Pseudonymiser
from shared.records import Record
from shared.topics import (
    CHAT_RESPONSES,
    DEAD_LETTERS,
    ERASURE_REPORTS,
    ERASURE_REQUESTS,
    FEEDBACK_EVENTS,
    FEEDBACK_TALLIES,
    RESPONSE_SAMPLES,
    TRAINING_BATCHES,
)
from shared.user_ids import UserId

Json = dict[str, Any]
EXPORTED_TOPICS: Final = (
    CHAT_RESPONSES, FEEDBACK_EVENTS, TRAINING_BATCHES, FEEDBACK_TALLIES, RESPONSE_SAMPLES, DEAD_LETTERS,
    ERASURE_REQUESTS, ERASURE_REPORTS,
)  # fmt: skip
"""Topics whose records name a user. The changelog repeats them, and outcomes name no user."""
SUBJECT_FIELDS: Final = ("user_id", "subject")


class ExportBody(BaseModel):
    """Request for everything about one user (`POST /v1/export`). Send `user_id` or `subject`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    user_id: UserId | None = None
    subject: Id | None = None

    @model_validator(mode="after")
    def _require_one_user(self) -> ExportBody:
        if (self.user_id is None) == (self.subject is None):
            raise ValueError("send either `user_id` or `subject`")
        return self


EXPORT_BODY = TypeAdapter(ExportBody)
EXPORT_EXAMPLES: Final[dict[str, Json]] = {"user": {"user_id": "u-17"}}


@dataclass(frozen=True, slots=True)
class ExportHandler:
    """Handler of exports. One runs at a time, because each reads the whole log."""

    ranges: LogRanges
    pseudonymiser: Pseudonymiser
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, raw: bytes) -> Iterator[bytes]:
        """Return the lines of an export, and a last one that says how many there are.

        Raises:
            Rejected: if the body is invalid (422).
            Overloaded: if another export is running (429).

        """
        body = parse_body(EXPORT_BODY, raw)
        subject = body.subject if body.subject is not None else self.pseudonymiser.of(str(body.user_id))
        if not self._lock.acquire(blocking=False):
            raise Overloaded("another export is running, and each reads the whole log: try again in a minute")
        return self._lines(subject)

    def _lines(self, subject: str) -> Iterator[bytes]:
        found = 0
        try:
            for topic in EXPORTED_TOPICS:
                for record in self.ranges.read(topic.name, self.ranges.bounds(topic.name)):
                    for content in records_of(record, subject):
                        found += 1
                        yield _line(record, content)
            yield orjson.dumps({"complete": True, "subject": subject, "records": found}) + b"\n"
        except LoopwrightError as error:
            yield (
                orjson.dumps(
                    {
                        "complete": False,
                        "subject": subject,
                        "records": found,
                        "code": error.code,
                        "detail": str(error),
                    }
                )
                + b"\n"
            )
        finally:
            self._lock.release()


def records_of(record: Record, subject: str) -> list[Json]:
    """Return what a record has of a user: nothing, the record, or their part of a batch."""
    value = record.value
    if value is None or subject.encode() not in value:
        return []
    try:
        content = orjson.loads(value)
    except ValueError:
        return []
    if not isinstance(content, dict):
        return []
    if record.topic == TRAINING_BATCHES.name:
        return _of_batch(content, subject)
    return [content] if any(content.get(name) == subject for name in SUBJECT_FIELDS) else []


def _of_batch(batch: Json, subject: str) -> list[Json]:
    found = []
    for example in batch.get("examples", ()):
        own = [signal for signal in example.get("signals", ()) if signal.get("user_id") == subject]
        if example.get("user_id") == subject:
            found.append({"batch_id": batch.get("batch_id"), "example": example | {"signals": own}})
        elif own:
            found.append(
                {
                    "batch_id": batch.get("batch_id"),
                    "feedback_on": example.get("response_id"),
                    "version": example.get("version"),
                    "signals": own,
                }
            )
    return found


def _line(record: Record, content: Json) -> bytes:
    return (
        orjson.dumps(
            {
                "topic": record.topic,
                "partition": record.partition,
                "offset": record.offset,
                "appended_ms": record.timestamp,
                "content": content,
            }
        )
        + b"\n"
    )
