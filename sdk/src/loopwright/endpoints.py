"""Every request as a value: what is sent, and how the answer is read. Both clients run the same calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote, urlencode

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from loopwright.errors import Problem, Unavailable, problem_from
from loopwright.event_ids import new_event_id
from loopwright.models import (
    Accepted,
    Command,
    CommandKind,
    CommandResult,
    DeadLetterContent,
    DeadLetterPage,
    Diff,
    Erasure,
    GateReport,
    Kind,
    Lineage,
    Quarantine,
    Receipt,
    Recorded,
    Status,
    Trace,
    Version,
)

Service = Literal["feedback", "console", "trainer"]
Value = str | int | Mapping[str, str | int]
"""`"up"` or `"down"`, 1 to 5, the corrected answer, the comment, `{"over": ...}` or `{"under": ...}`, an event_id."""

POLL_S = 0.5
"""Seconds between two questions for a command's result."""

A = TypeVar("A")
M = TypeVar("M", bound=BaseModel)
_VERSIONS = TypeAdapter(list[Version])


@dataclass(frozen=True, slots=True)
class Call(Generic[A]):
    """One request to one service. `repeatable`: to send it twice does no more than to send it once. `erases`: the
    service asks for the erasure token."""

    service: Service
    method: str
    path: str
    read: Callable[[httpx.Response], A]
    body: Mapping[str, Any] | None = None
    repeatable: bool = True
    erases: bool = False

    def headers(self, erasure_token: str | None) -> dict[str, str]:
        """What goes with the request beside its body."""
        return {"Authorization": f"Bearer {erasure_token}"} if self.erases and erasure_token else {}


def send(
    response_id: str,
    user_id: str,
    kind: Kind,
    value: Value,
    *,
    event_id: str | None,
    choice: int,
    tags: Sequence[str],
    occurred_at: datetime | None,
    line: str | None,
) -> Call[Accepted]:
    """One feedback event. It always carries an event_id, so that a repetition is recognised and counts once."""
    if occurred_at is not None and occurred_at.tzinfo is None:
        raise ValueError(
            "occurred_at has no time zone; give an aware datetime, for example datetime.now(UTC)"
        )
    body: dict[str, Any] = {
        "event_id": event_id or new_event_id(),
        "response_id": response_id,
        "user_id": user_id,
        "kind": kind,
        "value": value,
        "choice": choice,
    }
    if tags:
        body["tags"] = list(tags)
    if occurred_at is not None:
        body["occurred_at"] = occurred_at.isoformat()
    if line is not None:
        body["line"] = line
    return Call("feedback", "POST", "/v1/feedback", _one(Accepted), body)


def record_response(
    response_id: str,
    messages: Sequence[Mapping[str, str]],
    text: str,
    *,
    version: str,
    finish_reason: str | None,
    line: str | None,
) -> Call[Recorded]:
    """One answer of an app's own model. The same again under its id changes nothing; the first stands."""
    said: dict[str, Any] = {"index": 0, "text": text}
    if finish_reason is not None:
        said["finish_reason"] = finish_reason
    body: dict[str, Any] = {
        "response_id": response_id,
        "version": version,
        "messages": [dict(message) for message in messages],
        "choices": [said],
    }
    if line is not None:
        body["line"] = line
    return Call("feedback", "POST", "/v1/responses", _one(Recorded), body)


def preference(over: str | int | None, under: str | int | None) -> Mapping[str, str | int]:
    """The value of a preference. Raises ValueError unless exactly one side is given."""
    if over is not None and under is None:
        return {"over": over}
    if under is not None and over is None:
        return {"under": under}
    raise ValueError(
        "a preference needs exactly one of over= and under=: the text or choice that it is compared with"
    )


def receipt(response_id: str, event_id: str) -> Call[Receipt]:
    """What became of one feedback event."""
    path = f"/v1/feedback/{quote(response_id, safe='')}/{quote(event_id, safe='')}"
    return Call("feedback", "GET", path, _one(Receipt))


def erase(user_id: str, request_id: str | None, line: str | None) -> Call[Erasure]:
    """The erasure of one user. It always carries a request_id, so that a repetition is the same erasure."""
    body: dict[str, Any] = {"user_id": user_id, "request_id": request_id or new_event_id()}
    if line is not None:
        body["line"] = line
    return Call("feedback", "POST", "/v1/erasure", _one(Erasure), body, erases=True)


def erasure(request_id: str) -> Call[Erasure]:
    """How far an erasure has come."""
    path = f"/v1/erasure/{quote(request_id, safe='')}"
    return Call("feedback", "GET", path, _one(Erasure), erases=True)


def status(line: str | None) -> Call[Status]:
    """What the loop is doing, for one line; absent, the console's own."""
    return Call("console", "GET", "/api/status" + _of_line(line), _one(Status))


def versions(line: str | None) -> Call[list[Version]]:
    """All versions of a line."""
    return Call("console", "GET", "/api/versions" + _of_line(line), _read_versions)


def command(
    kind: CommandKind, line: str | None, version: str | None, *, dry_run: bool = False
) -> Call[Command]:
    """An operator's command. Not repeatable: each arrival is a command of its own."""
    given = {"kind": kind, "line": line, "version": version, "dry_run": dry_run or None}
    body = {name: value for name, value in given.items() if value is not None}
    return Call("console", "POST", "/api/commands", _one(Command), body, repeatable=False)


def result(command_id: str) -> Call[CommandResult | None]:
    """What came of a command; None while nothing is known."""
    return Call("console", "GET", f"/api/commands/{quote(command_id, safe='')}", _read_result)


def dead_letters(
    *,
    error_class: str | None,
    topic: str | None,
    since: datetime | None,
    until: datetime | None,
    replayed: bool | None,
    cursor: str | None,
    limit: int,
) -> Call[DeadLetterPage]:
    """One page of the dead letters that are wanted."""
    for name, moment in (("since", since), ("until", until)):
        if moment is not None and moment.tzinfo is None:
            raise ValueError(
                f"{name} has no time zone; give an aware datetime, for example datetime.now(UTC)"
            )
    asked: dict[str, str | int | None] = {
        "error_class": error_class,
        "topic": topic,
        "since": since.isoformat() if since is not None else None,
        "until": until.isoformat() if until is not None else None,
        "replayed": None if replayed is None else str(replayed).lower(),
        "cursor": cursor,
        "limit": limit,
    }
    query = urlencode({name: value for name, value in asked.items() if value is not None})
    return Call("console", "GET", f"/api/dead-letters?{query}", _one(DeadLetterPage))


def dead_letter(position: str) -> Call[DeadLetterContent]:
    """One dead letter with what the record held."""
    return Call("console", "GET", f"/api/dead-letters/{quote(position, safe='')}", _one(DeadLetterContent))


def replay(positions: Sequence[str], line: str | None) -> Call[Command]:
    """Send dead letters back to their topics. The same one goes back once, whatever is asked how often."""
    body: dict[str, Any] = {"kind": "replay", "positions": list(positions)}
    if line is not None:
        body["line"] = line
    return Call("console", "POST", "/api/commands", _one(Command), body, repeatable=False)


def quarantine(line: str | None) -> Call[Quarantine]:
    """What is held back from training and can be released."""
    return Call("console", "GET", "/api/quarantine" + _of_line(line), _one(Quarantine))


def release(response_ids: Sequence[str], line: str | None) -> Call[Command]:
    """Let what is held of these responses train after all. The same is released once, whatever is asked how often."""
    body: dict[str, Any] = {"kind": "release", "response_ids": list(response_ids)}
    if line is not None:
        body["line"] = line
    return Call("console", "POST", "/api/commands", _one(Command), body, repeatable=False)


def lineage(version: str) -> Call[Lineage]:
    """Down from a version to the events that it was trained from."""
    return Call("trainer", "GET", f"/api/lineage?{urlencode({'version': version})}", _one(Lineage))


def trace(event_id: str, response_id: str | None) -> Call[Trace]:
    """Up from an event to runs and versions."""
    asked = {"event_id": event_id} | ({} if response_id is None else {"response_id": response_id})
    return Call("trainer", "GET", f"/api/lineage?{urlencode(asked)}", _one(Trace))


def diff(one: str, other: str) -> Call[Diff]:
    """What two versions differ in."""
    return Call("trainer", "GET", f"/api/diff?{urlencode({'one': one, 'other': other})}", _one(Diff))


def gate_report(version: str) -> Call[GateReport]:
    """What the gate found of a version."""
    return Call("trainer", "GET", f"/api/gate?{urlencode({'version': version})}", _one(GateReport))


def gate_page(version: str) -> Call[str]:
    """The same as a page for people."""
    return Call("trainer", "GET", f"/gate?{urlencode({'version': version})}", _text)


def _text(response: httpx.Response) -> str:
    if response.status_code >= 400:
        raise problem_from(response)
    return response.text


def _of_line(line: str | None) -> str:
    return f"?line={quote(line, safe='')}" if line is not None else ""


def _one(model: type[M]) -> Callable[[httpx.Response], M]:
    def read(response: httpx.Response) -> M:
        return _parsed(response, TypeAdapter(model))

    return read


def _parsed(response: httpx.Response, adapter: TypeAdapter[A]) -> A:
    """The answer's body. Raises a `Problem`, also for a body that is not what it should be."""
    if response.status_code >= 400:
        raise problem_from(response)
    try:
        return adapter.validate_python(response.json())
    except ValueError as error:
        raise _foreign(response, error) from error


def _foreign(response: httpx.Response, error: Exception) -> Problem:
    fault = (
        error.errors(include_input=False)[0]["msg"] if isinstance(error, ValidationError) else "not this JSON"
    )
    return Unavailable(
        response.status_code,
        "foreign_answer",
        "Not an answer of Loopwright",
        f"{response.request.url} answered with something else ({fault}); check the address and the versions of both.",
    )


def _read_versions(response: httpx.Response) -> list[Version]:
    return _parsed(response, _VERSIONS)


def _read_result(response: httpx.Response) -> CommandResult | None:
    if response.status_code == 202:
        return None
    return _parsed(response, TypeAdapter(CommandResult))
