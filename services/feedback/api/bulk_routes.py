"""Bulk routes of the feedback API: newline-delimited JSON in, one result per row out, both streamed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any, Final

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from starlette.types import Receive, Scope, Send

from services.feedback.bulk_handlers import BulkHandlers
from services.feedback.bulk_stream import Begin, BulkStream
from services.feedback.core.answers import FEEDBACK_EXAMPLES, RESPONSE_EXAMPLES
from services.feedback.core.ndjson import MEDIA_TYPE
from services.feedback.core.schemas import FEEDBACK_BODY, RESPONSE_BODY
from services.feedback.handlers import MAX_FEEDBACK_BYTES
from shared.adapters.access_rules import needs
from shared.adapters.http import problem
from shared.adapters.openapi import json_body, problems
from shared.events import MAX_RECORD_BYTES
from shared.telemetry import FEEDBACK_REFUSED

BULK_FEEDBACK: Final = "/v1/feedback:bulk"
BULK_RESPONSES: Final = "/v1/responses:bulk"
BULK_PATHS: Final = frozenset({BULK_FEEDBACK, BULK_RESPONSES})
"""Their bodies have no maximum size; a single row has."""
NDJSON: Final = MEDIA_TYPE
DryRun = Annotated[
    bool, Query(alias="dryrun", description="Validate, and report hints and conflicts, but write nothing.")
]


class BulkResult(BaseModel):
    """Result of one row: what a single request would have been answered, and the number of its line."""

    model_config = ConfigDict(extra="allow")
    line: int = Field(ge=1, description="Number of the line, from 1. Blank lines count and have no result.")
    status_code: int = Field(
        description="HTTP status that a single request would have got. 429 and 503: send the row again."
    )
    code: str | None = Field(None, description="Stable code of the error, if the row was not accepted.")
    detail: str | None = Field(None, description="What is wrong with the row, and what to do.")


ANSWER: Final[dict[str, Any]] = {
    "description": "One `BulkResult` per row, in order, while the request is still being sent. Read them while "
    "sending: about 40,000 results wait in memory; beyond that, a last line says from which line on to continue.",
    "content": {NDJSON: {"schema": {"$ref": "#/components/schemas/BulkResult"}}},
}


class _DuplexResponse(StreamingResponse):
    """A response that is sent while its request is still being received.

    Starlette would listen for the end of the connection, and take parts of the body for it.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.stream_response(send)


def add_bulk_routes(app: FastAPI, handlers: BulkHandlers) -> None:
    """Add the bulk routes of feedback and of responses."""

    @app.post(
        BULK_FEEDBACK,
        response_class=StreamingResponse,
        responses=problems(415, 422, 503, besides={200: ANSWER}),
        openapi_extra=_rows(
            FEEDBACK_BODY, [{"event_id": "e1"} | each for each in FEEDBACK_EXAMPLES.values()]
        ),
    )
    @needs("ingest")
    async def post_feedback_rows(request: Request, dry_run: DryRun = False) -> Response:
        """Send many feedback events, one per line. Each needs its `event_id`, so that it can be sent again."""
        return _answer(request, partial(handlers.begin_feedback, dry_run=dry_run), MAX_FEEDBACK_BYTES)

    @app.post(
        BULK_RESPONSES,
        response_class=StreamingResponse,
        responses=problems(415, 422, 503, besides={200: ANSWER}),
        openapi_extra=_rows(RESPONSE_BODY, list(RESPONSE_EXAMPLES.values())),
    )
    @needs("ingest")
    async def post_response_rows(request: Request, dry_run: DryRun = False) -> Response:
        """Record many responses of your own model, one per line."""
        return _answer(request, partial(handlers.begin_responses, dry_run=dry_run), MAX_RECORD_BYTES)


def _answer(request: Request, begin: Begin, max_row_bytes: int) -> Response:
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type != NDJSON:
        FEEDBACK_REFUSED.labels("media_type").inc()
        return problem(
            415,
            "media_type",
            "Not newline-delimited JSON",
            f"the Content-Type is not {NDJSON}: send one JSON object per line, with Content-Type: {NDJSON}",
        )
    stream = BulkStream(_chunks(request), begin, max_row_bytes=max_row_bytes)
    return _DuplexResponse(stream.results(), media_type=NDJSON, headers={"X-Accel-Buffering": "no"})


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    async for chunk in request.stream():
        yield chunk


def _rows(adapter: TypeAdapter[Any], examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Describe a body of rows. The schema is that of one row: OpenAPI 3.1 has none for a sequence."""
    described = json_body(adapter, {}, media_type=NDJSON)
    text = "".join(f"{json.dumps(example)}\n" for example in examples)
    described["requestBody"]["content"][NDJSON]["examples"] = {"rows": {"value": text}}
    return described
