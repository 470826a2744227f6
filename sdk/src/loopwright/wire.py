"""What the clients put into requests and read from responses. No I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, TypeAlias, TypeVar
from urllib.parse import quote, urlencode

import httpx
from pydantic import TypeAdapter, ValidationError

from loopwright.errors import Unavailable, problem_from
from loopwright.feedback_kinds import FeedbackKind

Service = Literal["feedback", "console", "trainer"]
"""Services that the clients call."""

FeedbackValue: TypeAlias = str | int | Mapping[str, str | int]
"""Content of a feedback event. It depends on the kind (`feedback_kinds.VALUES`):

- `thumbs`: `"up"` or `"down"`
- `rating`: 1 to 5
- `correction`: the corrected answer
- `comment`: the comment
- `preference`: `{"over": ...}` or `{"under": ...}`, with a text or the index of another choice
- `retract`: the id of the event to retract
"""

POLL_INTERVAL_S = 0.5
"""Default interval between two requests while a client waits for a result, in seconds."""

MAX_VERSION = 256
UNKNOWN_MODEL = "unknown"
T = TypeVar("T")


def path_of(*parts: str, **query: str | int | None) -> str:
    """Return a URL path from unquoted parts, with the query parameters that are not None."""
    path = "".join(f"/{_quote(part)}" for part in parts)
    parameters = without_none(query)
    return f"{path}?{urlencode(parameters, quote_via=quote)}" if parameters else path


def _quote(part: str) -> str:
    """Return a quoted part. The parts `.` and `..` would be removed from a path."""
    quoted = quote(part, safe="")
    return quoted.replace(".", "%2E") if part in {".", ".."} else quoted


def without_none(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def format_time(name: str, time: datetime | None) -> str | None:
    """Return a time as ISO 8601, or None.

    Raises:
        ValueError: `time` has no time zone. The message contains the parameter's `name`.

    """
    if time is None:
        return None
    if time.tzinfo is None:
        raise ValueError(
            f"{name} has no time zone; use an aware datetime, for example datetime.now(timezone.utc)"
        )
    return time.isoformat()


def preference_value(over: str | int | None, under: str | int | None) -> FeedbackValue:
    """Return the value of a preference.

    Raises:
        ValueError: Not exactly one of the two is given.

    """
    if over is not None and under is None:
        return {"over": over}
    if under is not None and over is None:
        return {"under": under}
    raise ValueError("a preference needs exactly one of over= and under=: the other text, or another choice")


def choices_of(text: str, finish_reason: str | None) -> Sequence[Mapping[str, str | int]]:
    """Return the only choice of a recorded response."""
    return [without_none({"index": 0, "text": text, "finish_reason": finish_reason})]


def feedback_body(
    response_id: str,
    user_id: str,
    kind: FeedbackKind,
    value: FeedbackValue,
    *,
    event_id: str,
    choice: int,
    tags: Sequence[str],
    occurred_at: datetime | None,
    line: str | None,
) -> dict[str, Any]:
    """Return the body of `POST /v1/feedback`. Raises `ValueError` if `occurred_at` has no time zone."""
    return {
        "event_id": event_id,
        "response_id": response_id,
        "user_id": user_id,
        "kind": kind,
        "value": value,
        "choice": choice,
        "tags": list(tags) or None,
        "occurred_at": format_time("occurred_at", occurred_at),
        "line": line,
    }


def response_body(
    response_id: str,
    messages: Sequence[Mapping[str, Any]],
    choices: Sequence[Mapping[str, Any]],
    *,
    version: str,
    user_id: str | None = None,
    metadata: Mapping[str, str] | None = None,
    usage: Mapping[str, int] | None = None,
    latency_ms: float | None = None,
    created_at: datetime | None = None,
    line: str | None = None,
) -> dict[str, Any]:
    """Return the body of `POST /v1/responses`. Raises `ValueError` if `created_at` has no time zone."""
    return {
        "response_id": response_id,
        "version": version,
        "messages": [dict(message) for message in messages],
        "choices": [dict(choice) for choice in choices],
        "user_id": user_id,
        "metadata": dict(metadata) if metadata else None,
        "usage": dict(usage) if usage else None,
        "latency_ms": latency_ms,
        "created_at": format_time("created_at", created_at),
        "line": line,
    }


def version_name(model: object) -> str:
    """Return the version of a response, from the name of the model that answered."""
    return str(model)[:MAX_VERSION] if model else UNKNOWN_MODEL


def parse(response: httpx.Response, type_: type[T]) -> T:
    """Return the response body as an instance of `type_`.

    Raises:
        Unavailable: The body does not fit, so the response is probably not Loopwright's.

    """
    try:
        return TypeAdapter(type_).validate_python(response.json())
    except ValueError as error:
        raise unexpected_response(response, error) from error


def exported_records(response: httpx.Response) -> list[dict[str, Any]]:
    """Return the records of an export.

    Raises:
        Unavailable: The export is not complete.

    """
    lines = [json.loads(line) for line in response.text.split("\n") if line]
    if not lines or not lines[-1].get("complete"):
        detail = str(lines[-1].get("detail", "")) if lines else "the answer is empty"
        raise Unavailable(
            503,
            "export_incomplete",
            "Incomplete export",
            f"the log could not be read to its end ({detail}): try again",
        )
    return lines[:-1]


def check(response: httpx.Response) -> httpx.Response:
    """Return the response if it is a success. Raise the matching `Problem` otherwise."""
    if response.status_code >= 400:
        raise problem_from(response)
    return response


def unexpected_response(response: httpx.Response, error: ValueError) -> Unavailable:
    """Return the error for a successful response whose body is not what the service would send."""
    fault = error.errors(include_input=False)[0]["msg"] if isinstance(error, ValidationError) else "not JSON"
    return Unavailable(
        response.status_code,
        "unexpected_response",
        "Unexpected response",
        f"{response.request.url} did not answer like a Loopwright service ({fault}). Check the address, and that the "
        "client and the service have compatible versions.",
    )
