"""Langfuse's scores and traces, as its API and its exports give them.

Traces become responses under their ids. Scores become feedback by the table of the feedback service
(`services/feedback/core/langfuse_scores.py`): a test compares both. An event's id names its score, so that the feedback
service knows the events of a score that is edited or deleted through its Langfuse routes later.

Format: https://api.reference.langfuse.com (`GET /api/public/scores`, `GET /api/public/traces`).
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, BinaryIO, Final

from loopwright.imports.json_values import read_objects
from loopwright.imports.langfuse_scores import ScoreUse, Signal, signals_of
from loopwright.imports.rows import BadRow, Defaults, Json, ParsedRow, Row, time_of

USER_FIELDS: Final = ("userId", "user_id", "user")
RESPONSE_FIELDS: Final = ("response_id", "responseId")
USER_OF_TRACE: Final = "langfuse-trace:"
"""Prefix of the user id of scores that name no user: one user per trace, as at the feedback service."""
ROLES: Final = frozenset({"system", "developer", "user", "assistant"})
MAX_USER: Final = 256


class TraceUsers:
    """Users by trace, in a temporary file, so that millions of traces take no memory."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        database.execute("CREATE TABLE users (trace TEXT PRIMARY KEY, user TEXT) WITHOUT ROWID")

    def add(self, trace: str, user: str) -> None:
        """Remember the user of a trace."""
        self._database.execute("INSERT OR REPLACE INTO users VALUES (?, ?)", (_key(trace), user))

    def get(self, trace: str) -> str | None:
        """Return the user of a trace, or None."""
        found = self._database.execute("SELECT user FROM users WHERE trace = ?", (_key(trace),)).fetchone()
        return None if found is None else str(found[0])


@contextmanager
def open_trace_users() -> Iterator[TraceUsers]:
    """Open an empty table of users."""
    with closing(sqlite3.connect("")) as database:
        yield TraceUsers(database)


def read_traces(stream: BinaryIO, defaults: Defaults, users: TraceUsers) -> Iterator[ParsedRow]:
    """Yield one row per trace. Those without a conversation and an answer have no response."""

    def parse(number: int, content: Json) -> Row:
        trace, user = _text(content.get("id")), _user(content.get("userId"))
        if trace is None:
            raise BadRow("the trace has no id")
        if user:
            users.add(trace, user)
        messages, answer = conversation_of(content.get("input")), answer_of(content.get("output"))
        if not messages or answer is None:
            return Row(number, (), (), content)
        time = time_of(content.get("timestamp"), "timestamp")
        response = defaults.response(trace, messages, answer, user_id=user, created_at=time)
        return Row(number, [response], (), content)

    return read_objects(stream, parse)


def read_scores(
    stream: BinaryIO, defaults: Defaults, users: TraceUsers, uses: Mapping[str, ScoreUse]
) -> Iterator[ParsedRow]:
    """Yield one row per score. `uses` says what scores are whose names are not known."""

    def parse(number: int, content: Json) -> Row:
        signals = signals_of(content, uses)
        trace = _text(content.get("traceId"))
        response_id = _metadata_text(content, RESPONSE_FIELDS) or trace
        if response_id is None:
            raise BadRow("the score names no response: it has no traceId, and no response_id in its metadata")
        user = (
            _user(_metadata_text(content, USER_FIELDS))
            or _user_of_trace(content)
            or (users.get(trace) if trace else None)
            or f"{USER_OF_TRACE}{response_id}"[:MAX_USER]
        )
        time = _changed_at(content)
        events = [
            defaults.event(
                response_id,
                signal.kind,
                signal.value,
                user=user,
                occurred_at=time,
                event_id=_event_id(content, response_id, user, signal, time),
            )
            for signal in signals
        ]
        return Row(number, (), events, content)

    return read_objects(stream, parse)


def _event_id(score: Json, response_id: str, user: str, signal: Signal, time: str | None) -> str | None:
    score_id = _text(score.get("id"))
    if score_id is None:
        return None
    # `time`, so that a value that comes back after an edit is a new event.
    content = json.dumps([response_id, user, signal.kind, signal.value, time])
    return f"langfuse.{_digest(score_id)}.{_digest(content)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _key(trace: str) -> str:
    """Return the trace's id as SQLite can store it."""
    return trace if trace.isascii() else _digest(trace)


def _changed_at(score: Json) -> str | None:
    name = next((name for name in ("updatedAt", "timestamp", "createdAt") if score.get(name)), "timestamp")
    return time_of(score.get(name), name)


def _metadata_text(score: Json, names: tuple[str, ...]) -> str | None:
    metadata = score.get("metadata")
    if not isinstance(metadata, dict):
        return None
    return next((text for name in names if (text := _text(metadata.get(name)))), None)


def _user_of_trace(score: Json) -> str | None:
    trace = score.get("trace")
    return _user(trace.get("userId")) if isinstance(trace, dict) else None


def _user(value: Any) -> str | None:
    """Return a user's id. A wrong one is refused by the feedback service, with its row."""
    text = _text(value)
    if text is not None and not _is_unicode(text):
        raise BadRow("the user's id is not valid Unicode")
    return text


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def conversation_of(value: Any) -> list[Json]:
    """Return the conversation that a trace's input holds, or an empty list. A text is a message of the user."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}] if value else []
    if isinstance(value, dict):
        value = value.get("messages")
    if not isinstance(value, list):
        return []
    messages = []
    for message in value:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (0, 0)
        if not isinstance(role, str) or role not in ROLES or not isinstance(content, str):
            return []
        messages.append({"role": role, "content": content})
    return messages


def answer_of(value: Any) -> str | None:
    """Return the text of a trace's output: a text, a message, or a chat completion. None if it is none."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict) and isinstance(value.get("choices"), list) and value["choices"]:
        value = value["choices"][0]
    if isinstance(value, dict) and isinstance(value.get("message"), dict):
        value = value["message"]
    if isinstance(value, dict):
        value = value.get("content") if value.get("role", "assistant") == "assistant" else None
    return _text(value)
