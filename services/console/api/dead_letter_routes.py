"""Routes that list dead letters and show one. Replaying them is a command."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Query
from fastapi.responses import JSONResponse
from pydantic import AwareDatetime
from starlette.concurrency import run_in_threadpool

from services.console.api.routes import require_complete
from services.console.backend import ConsoleBackend
from services.console.core import dead_letter_json
from services.console.core.responses import Json
from services.console.dead_letter_query import MAX_PAGE, DeadLetterFilter, DeadLetterReader
from shared.adapters.access_rules import needs
from shared.adapters.http import problem
from shared.adapters.openapi import problems
from shared.adapters.topic_follower import TopicFollower
from shared.dead_letter_replay import DeadLetterPosition
from shared.events import to_ms
from shared.topics import DEAD_LETTERS

ErrorClass = Annotated[
    str | None, Query(max_length=200, description="Class of the error, for example `oversized`.")
]
TopicName = Annotated[str | None, Query(max_length=249, description="Topic that the record came from.")]
Since = Annotated[
    AwareDatetime | None,
    Query(description="Earliest time at which the dead letter was written, with a time zone."),
]
Until = Annotated[
    AwareDatetime | None,
    Query(description="Time before which the dead letter was written, with a time zone."),
]
IsReplayed = Annotated[bool | None, Query(description="Whether the dead letter has been replayed.")]
Cursor = Annotated[
    str | None, Query(max_length=20_000, description="`next` of the previous page, with the same filters.")
]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]


def add_dead_letter_routes(
    app: FastAPI, backend: ConsoleBackend, follower: TopicFollower, reader: DeadLetterReader
) -> None:
    """Add the routes to the console's app."""
    api = APIRouter(
        prefix="/api/dead-letters",
        dependencies=[Depends(require_complete(follower))],
        responses=problems(403, 422, 503),
    )

    @api.get("")
    @needs("read")
    async def list_dead_letters(
        error_class: ErrorClass = None,
        topic: TopicName = None,
        since: Since = None,
        until: Until = None,
        replayed: IsReplayed = None,
        cursor: Cursor = None,
        limit: Limit = 50,
    ) -> Json:
        """List dead letters, newest first, without their content.

        A page may be short, even empty, while `next` is not null.
        """
        conditions = DeadLetterFilter(
            error_class,
            topic,
            to_ms(since) if since is not None else None,
            to_ms(until) if until is not None else None,
            replayed,
        )
        replayed_by = backend.replayed_by()
        page = await run_in_threadpool(reader.page, conditions, replayed_by, cursor=cursor, limit=limit)
        entries = [dead_letter_json.summary(entry.letter, entry.size, replayed_by) for entry in page.entries]
        return {"dead_letters": entries, "next": page.next}

    @api.get("/{position}", responses=problems(404))
    @needs("read")
    async def get_dead_letter(position: str) -> JSONResponse:
        """Show one dead letter with the bytes of the original record."""
        letter = await run_in_threadpool(reader.find, DeadLetterPosition.parse(position))
        if letter is None:
            return problem(
                404,
                "unknown_dead_letter",
                "No such dead letter",
                f"there is no dead letter at {position}: check the position; dead letters are kept for "
                f"{DEAD_LETTERS.keep_days} days",
            )
        return JSONResponse(dead_letter_json.details(letter, backend.replayed_by()))

    app.include_router(api)
