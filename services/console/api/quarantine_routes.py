"""`GET /api/quarantine`: what the trainer holds back and could release, by its ids. Releasing is a command."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from pydantic import AwareDatetime, BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool

from services.console.api.routes import ConsoleBackend, LineQuery, request_guard
from services.console.core.responses import Json
from shared.adapters import redis_keys
from shared.adapters.topic_follower import TopicFollower

UNKNOWN: Json = {"held": [], "total": None, "updated_at": None}
"""Where the trainer has not told, or Redis lost it: it tells again within seconds."""


class Told(BaseModel):
    """As `redis_keys.quarantine` says."""

    held: list[tuple[str, str, str]]
    total: int
    updated_at: AwareDatetime


def add_quarantine_routes(app: FastAPI, console: ConsoleBackend, follower: TopicFollower) -> None:
    """Adds the route to the console's app."""
    api = APIRouter(prefix="/api/quarantine", dependencies=[Depends(request_guard(console, follower))])

    @api.get("")
    async def listed(line: LineQuery = None) -> Json:
        """The first 1000 events that are held and can be released, why each, and how many there are. No texts. `total`
        is null while nothing is known."""
        key = redis_keys.quarantine(line or console.settings.line)
        return await run_in_threadpool(shown, lambda: console.cache.get(key))

    app.include_router(api)


def shown(read: Callable[[], bytes | None]) -> Json:
    try:
        found: Any = json.loads(read() or b"null")
        told = Told.model_validate(found)
    except (ValueError, ValidationError):
        return UNKNOWN
    return {
        "held": [
            {"response_id": response_id, "event_id": event_id, "reason": reason}
            for response_id, event_id, reason in told.held
        ],
        "total": told.total,
        "updated_at": told.updated_at.isoformat(),
    }
