"""Langfuse-compatible routes. Their definition is Langfuse's own, so Loopwright's OpenAPI document leaves them out.

Langfuse clients send `Authorization: Basic` with the public key as user name and the secret key as password: the secret
key is an API key with the scope `ingest`, the public key may be anything.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from services.feedback.langfuse.score_handlers import ScoreHandlers
from shared.adapters.access import needs
from shared.errors import LoopwrightError
from shared.telemetry import FEEDBACK_REFUSED

SCORES: Final = "/api/public/scores"
INGESTION: Final = "/api/public/ingestion"


def add_langfuse_routes(app: FastAPI, handlers: ScoreHandlers) -> None:
    """Add the routes to the app of the feedback service."""

    @app.post(SCORES, include_in_schema=False)
    @needs("ingest")
    async def post_score(request: Request) -> JSONResponse:
        """Create a score, or replace the one with this id."""
        try:
            return await handlers.post_score(await request.body(), request.headers.get("traceparent"))
        except LoopwrightError as error:
            FEEDBACK_REFUSED.labels(error.code).inc()
            raise

    @app.delete(SCORES + "/{score_id:path}", include_in_schema=False)
    @needs("ingest")
    async def delete_score(request: Request) -> JSONResponse:
        """Delete a score."""
        path: str = request.scope["raw_path"].split(b"?")[0].decode("ascii", "replace")
        score_id = unquote(path.partition(f"{SCORES}/")[2])
        return await handlers.delete_score(score_id, request.headers.get("traceparent"))

    @app.post(INGESTION, include_in_schema=False)
    @needs("ingest")
    async def post_batch(request: Request) -> JSONResponse:
        """Take a batch of events."""
        return await handlers.post_batch(await request.body(), request.headers.get("traceparent"))
