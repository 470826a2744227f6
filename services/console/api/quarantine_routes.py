"""Route that lists what can be released from quarantine. Releasing is a command."""

from __future__ import annotations

from fastapi import APIRouter, Depends, FastAPI
from starlette.concurrency import run_in_threadpool

from services.console.api.routes import LineQuery, require_complete
from services.console.backend import ConsoleBackend
from services.console.core.responses import Json
from shared.adapters.access_rules import needs
from shared.adapters.openapi import problems
from shared.adapters.topic_follower import TopicFollower


def add_quarantine_routes(app: FastAPI, backend: ConsoleBackend, follower: TopicFollower) -> None:
    """Add the route to the console's app."""
    api = APIRouter(
        prefix="/api/quarantine",
        dependencies=[Depends(require_complete(follower))],
        responses=problems(403, 422, 503),
    )

    @api.get("")
    @needs("read")
    async def get_quarantine(line: LineQuery = None) -> Json:
        """List the first 1000 events that can be released, with the reasons, and how many there are. No texts.

        `total` is null while the trainer's status is not known.
        """
        return await run_in_threadpool(backend.quarantine, line or backend.settings.line)

    app.include_router(api)
