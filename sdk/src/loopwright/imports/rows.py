"""What readers return: the responses and events of one row of a file, or why it has none."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final, TypeAlias

from loopwright.wire import without_none

DEFAULT_USER: Final = "import"
DEFAULT_VERSION: Final = "imported"
IMPORT_TAG: Final = "imported"
"""Tag of feedback whose user is not known. The trainer does not count its user, and holds none of it out."""
MAX_ROW_BYTES: Final = 1_048_576
"""Longest row in a file. The feedback service accepts no larger response."""
TOO_LONG: Final = f"longer than {MAX_ROW_BYTES >> 20} MiB"
_NAMESPACE: Final = uuid.UUID("0d1f8c55-6f0e-5c1b-9d3a-5f3f2f6f8e21")

Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """A row that can be sent."""

    number: int
    """Line number (JSON lines, CSV) or position (JSON array), from 1."""
    responses: Sequence[Mapping[str, Any]]
    """Rows of `POST /v1/responses:bulk`."""
    events: Sequence[Mapping[str, Any]]
    """Rows of `POST /v1/feedback:bulk`."""
    source: Any = None
    """The row as it was in the file, for the report of refused rows."""


@dataclass(frozen=True, slots=True)
class RowError:
    """A row that cannot be imported."""

    number: int
    """As in `Row`."""
    reason: str
    """The fault, without any text from the row."""
    source: Any = None
    """As in `Row`; None if it is too long."""


ParsedRow: TypeAlias = Row | RowError


class BadRow(Exception):
    """A row cannot be imported. The message says why, without any text from the row."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What rows have that do not say it themselves."""

    user: str = DEFAULT_USER
    version: str = DEFAULT_VERSION
    line: str | None = None

    def response(self, response_id: str, messages: Any, answer: str, **fields: Any) -> Json:
        """Return a row of `responses:bulk`. Fields that are None are left out."""
        return without_none(
            {
                "response_id": response_id,
                "version": fields.pop("version", None) or self.version,
                "messages": messages,
                "choices": [{"index": 0, "text": answer}],
                "line": self.line,
                **fields,
            }
        )

    def event(
        self, response_id: str, kind: str, value: Any, *, user: str | None = None, **fields: Any
    ) -> Json:
        """Return a row of `feedback:bulk`, with an id made from its content. Fields that are None are left out."""
        event_id = fields.pop("event_id", None) or content_id(
            response_id, user or self.user, kind, value, fields.get("occurred_at")
        )
        return without_none(
            {
                "response_id": response_id,
                "event_id": event_id,
                "user_id": user or self.user,
                "kind": kind,
                "value": value,
                "tags": None if user else [IMPORT_TAG],
                "line": self.line,
                **fields,
            }
        )


def content_id(*content: Any) -> str:
    """Return an id made from content (UUIDv5), so that the same row gets the same ids in every run."""
    return f"import-{uuid.uuid5(_NAMESPACE, json.dumps(content))}"


def text_of(value: Any, name: str) -> str:
    """Return the text of a message's content: a string, or OpenAI's text parts.

    Raises:
        BadRow: It is neither, or blank.

    """
    if isinstance(value, list) and all(
        isinstance(part, dict) and part.get("type") == "text" for part in value
    ):
        value = "".join(part["text"] for part in value if isinstance(part.get("text"), str))
    if not isinstance(value, str):
        raise BadRow(f"{name} is not a text")
    if not value.strip():
        raise BadRow(f"{name} is empty")
    return value


def messages_of(value: Any, name: str) -> list[Json]:
    """Return a conversation. Its messages are checked by the feedback service.

    Raises:
        BadRow: It is not a list of objects, or empty.

    """
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        raise BadRow(f"{name} is not a list of messages")
    return value


def time_of(value: Any, name: str) -> str | None:
    """Return a time as ISO 8601, or None if there is none. Without a zone, it is UTC.

    Raises:
        BadRow: It is no time.

    """
    if value is None or value == "":
        return None
    try:
        # Python 3.10 does not read the Z.
        time = datetime.fromisoformat(value[:-1] + "+00:00" if value.endswith("Z") else value)
        return (time if time.tzinfo else time.replace(tzinfo=timezone.utc)).isoformat()
    except (AttributeError, TypeError, ValueError):
        raise BadRow(f"{name} is no time in ISO 8601, for example 2026-03-01T12:00:00Z") from None
