"""`GET /api/dead-letters`: what died, and why; one of them with its content. Replaying is a command."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Query
from fastapi.responses import JSONResponse
from pydantic import AwareDatetime
from starlette.concurrency import run_in_threadpool

from services.console.api.routes import ConsoleBackend, request_guard
from services.console.core.responses import Json
from services.console.dead_letter_query import (
    MAX_PAGE,
    DeadLetterEntry,
    DeadLetterFilter,
    DeadLetterPage,
    find_dead_letter,
    list_page,
)
from shared.adapters.http import problem
from shared.adapters.topic_follower import TopicFollower
from shared.dead_letter_replay import DeadLetter, DeadLetterPosition
from shared.errors import Overloaded
from shared.events import from_ms, to_ms
from shared.ports import LogRanges
from shared.topics import DEAD_LETTERS

SHOWN_BYTES = 65_536
"""Of a key or a value; the rest is only counted."""
SHOWN_HEADERS = 50
SLOTS = 2
WAIT_S = 5.0
Class = Annotated[
    str | None, Query(max_length=200, description="the class of the error, such as `oversized`")
]
TopicName = Annotated[str | None, Query(max_length=249, description="the topic that the record came from")]
Moment = Annotated[AwareDatetime | None, Query(description="when it became a dead letter, with a time zone")]
Cursor = Annotated[
    str | None, Query(max_length=20_000, description="`next` of the page before, with the same filters")
]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]


class DeadLetterReader:
    """Looks dead letters up in the log; at most `SLOTS` requests at once."""

    def __init__(self, console: ConsoleBackend, ranges: LogRanges) -> None:
        self._console = console
        self._ranges = ranges
        self._slots = threading.BoundedSemaphore(SLOTS)

    def list(self, wanted: DeadLetterFilter, cursor: str | None, limit: int) -> Json:
        """A page. Raises `Malformed`, `Overloaded`, `BrokerUnavailable`."""
        replayed = self._replayed()
        with _Slot(self._slots):
            found: DeadLetterPage = list_page(self._ranges, wanted, replayed, cursor=cursor, limit=limit)
        return {"dead_letters": [_entry(entry, replayed) for entry in found.entries], "next": found.next}

    def show(self, place: DeadLetterPosition) -> Json | None:
        """One of them with its content; None where none lies."""
        with _Slot(self._slots):
            letter = find_dead_letter(self._ranges, place)
        return None if letter is None else _whole(letter, self._replayed())

    def _replayed(self) -> dict[str, str]:
        with self._console.lock:
            return dict(self._console.state.replayed)


class _Slot:
    """A place among those that read the log for a request."""

    def __init__(self, slots: threading.BoundedSemaphore) -> None:
        self._slots = slots

    def __enter__(self) -> None:
        if not self._slots.acquire(timeout=WAIT_S):
            raise Overloaded("too many requests read dead letters: try again in some seconds")

    def __exit__(self, *_: object) -> None:
        self._slots.release()


def add_dead_letter_routes(
    app: FastAPI, console: ConsoleBackend, follower: TopicFollower, letters: DeadLetterReader
) -> None:
    """Adds the routes to the console's app."""
    api = APIRouter(prefix="/api/dead-letters", dependencies=[Depends(request_guard(console, follower))])

    @api.get("")
    async def listed(
        error_class: Class = None,
        topic: TopicName = None,
        since: Moment = None,
        until: Moment = None,
        replayed: bool | None = None,
        cursor: Cursor = None,
        limit: Limit = 50,
    ) -> Json:
        """Newest first, without their content. A page may be short, even empty, while `next` is not null."""
        wanted = DeadLetterFilter(
            error_class,
            topic,
            to_ms(since) if since is not None else None,
            to_ms(until) if until is not None else None,
            replayed,
        )
        return await run_in_threadpool(letters.list, wanted, cursor, limit)

    @api.get("/{position}")
    async def shown(position: str) -> JSONResponse:
        """Everything about one, with the bytes of the record that died."""
        found = await run_in_threadpool(letters.show, DeadLetterPosition.parse(position))
        if found is None:
            kept = f"they are kept for {DEAD_LETTERS.keep_days} days"
            detail = f"there is no dead letter at {position}, or no longer: {kept}"
            return problem(404, "unknown_dead_letter", "No such dead letter", detail)
        return JSONResponse(found)

    app.include_router(api)


def _entry(entry: DeadLetterEntry, replayed: dict[str, str]) -> Json:
    return _told(entry.letter, replayed) | {"bytes": entry.letter.omitted_bytes or entry.size}


def _whole(letter: DeadLetter, replayed: dict[str, str]) -> Json:
    size = len(letter.key or b"") + len(letter.value or b"")
    return _told(letter, replayed) | {
        "bytes": letter.omitted_bytes or size,
        "key": _content(letter.key),
        "value": _content(letter.value),
        "headers": [[name, _content(value)] for name, value in letter.headers[:SHOWN_HEADERS]],
    }


def _told(letter: DeadLetter, replayed: dict[str, str]) -> Json:
    """What both say. `replayed_from`: it had died before, as that dead letter; `replayed_by`: it has gone back."""
    origin = letter.origin
    return {
        "position": str(letter.position),
        "at": from_ms(letter.appended_ms).isoformat(),
        "error_class": origin.error_class,
        "message": origin.message,
        "service": origin.service,
        "topic": origin.topic,
        "partition": letter.origin_partition,
        "offset": letter.origin_offset,
        "appended_at": _moment(letter.origin_timestamp_ms),
        "omitted": letter.omitted_bytes is not None,
        "replayed_from": letter.replayed_from,
        "replay_count": letter.replay_count,
        "replayed_by": replayed.get(str(letter.position)),
    }


def _moment(at_ms: int | None) -> str | None:
    """None too for a number that is no time."""
    try:
        return None if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return None


def _content(content: bytes | None) -> Json | None:
    """Text where it is text, else hex; the first `SHOWN_BYTES` bytes of it."""
    if content is None:
        return None
    shown = content[:SHOWN_BYTES]
    cut = len(shown) < len(content)
    text = _text(shown, cut)
    encoding, told = ("hex", shown.hex()) if text is None else ("text", text)
    return {"encoding": encoding, "data": told, "bytes": len(content), "truncated": cut}


def _text(shown: bytes, cut: bool) -> str | None:
    """None where it is not text; the last character may have been cut in two."""
    for end in range(len(shown), len(shown) - (4 if cut else 1), -1):
        try:
            text = shown[:end].decode()
        except UnicodeDecodeError:
            continue
        return None if "\0" in text else text
    return "" if not shown else None
