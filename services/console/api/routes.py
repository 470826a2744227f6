"""The console's app, and its routes for status, versions, rollout and commands."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request
from fastapi.responses import JSONResponse
from pydantic import TypeAdapter
from starlette.concurrency import run_in_threadpool
from starlette.types import StatelessLifespan

from services.console.backend import ConsoleBackend
from services.console.core.command_requests import CommandRequest, parse_command_request
from services.console.core.responses import Json
from shared.adapters.access_headers import is_json
from shared.adapters.access_middleware import caller_of
from shared.adapters.access_rules import needs
from shared.adapters.http import add_service_routes, problem
from shared.adapters.openapi import json_body, problems, publish_openapi
from shared.adapters.topic_follower import TopicFollower
from shared.errors import BrokerUnavailable
from shared.events import Line
from shared.telemetry import Readiness

DESCRIPTION = (
    "Read the state of the loop, and send commands to it. A command is executed once per `command_id`."
)
COMMAND_EXAMPLES: dict[str, Json] = {
    "promote": {"kind": "promote", "version": "assistant@v3-1f2e3d4c", "command_id": "change-17"},
    "pause": {"kind": "pause"},
    "train": {"kind": "train_now", "dry_run": True},
}
LineQuery = Annotated[Line | None, Query(description="The default is the console's line.")]


def build_app(
    backend: ConsoleBackend,
    follower: TopicFollower,
    readiness: Readiness,
    lifespan: StatelessLifespan[FastAPI] | None = None,
) -> FastAPI:
    """Return the app with its basic routes.

    Args:
        backend: what the routes call.
        follower: feeds the backend; until it has caught up, the routes get 503.
        readiness: what `/readyz` reports.
        lifespan: runs around the serving of requests.

    """
    app = FastAPI(title="Loopwright console", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    publish_openapi(app, DESCRIPTION)
    add_service_routes(app, readiness)
    app.include_router(_routes(backend, follower))
    return app


def add_fallback_route(app: FastAPI) -> None:
    """Answer unknown API paths with a problem document. Call this after all other API routes were added.

    Otherwise NiceGUI, which answers all remaining paths, would return an HTML page.
    """

    @app.api_route("/api/{rest:path}", methods=["GET", "POST", "PUT", "DELETE"], include_in_schema=False)
    @needs("read")
    async def handle_unknown_path(rest: str) -> JSONResponse:
        return problem(404, "http", "Not Found", f"there is no /api/{rest}: check the path")


def require_complete(follower: TopicFollower) -> Callable[[], Awaitable[None]]:
    """Return the dependency of all API routes: it checks that the state is complete."""

    async def check() -> None:
        if not follower.caught_up:
            raise BrokerUnavailable("the console is still reading the log: try again in a few seconds")

    return check


def _routes(backend: ConsoleBackend, follower: TopicFollower) -> APIRouter:
    api = APIRouter(
        prefix="/api",
        dependencies=[Depends(require_complete(follower))],
        responses=problems(403, 422, 503),
    )
    default_line = backend.settings.line

    @api.get("/status")
    @needs("read")
    async def get_status(line: LineQuery = None) -> Json:
        """Show what the loop is doing."""

        def read(name: str) -> Json:
            return backend.status(name, backend.collected(name), backend.run_progress(name))

        return await run_in_threadpool(read, line or default_line)

    @api.get("/versions")
    @needs("read")
    async def get_versions(line: LineQuery = None) -> list[Json]:
        """List all versions of the line with their verdicts and gate metrics."""
        return backend.versions(line or default_line)

    @api.get("/rollout")
    @needs("read")
    async def get_rollout(line: LineQuery = None) -> list[Json]:
        """List the line's rollout records, newest first."""
        return backend.rollout(line or default_line)

    @api.get("/rollout/{line}", responses=problems(404))
    @needs("read")
    async def get_rollout_state(line: Line) -> JSONResponse:
        """Show what serves, both arms of the canary with their intervals over time, and why it waits."""
        state = backend.rollout_state(line)
        if state is None:
            return problem(
                404,
                "unknown_line",
                "Unknown line",
                f"line {line} has no rollout record: check its name, or start its trainer, which publishes the base",
            )
        return JSONResponse(state)

    @api.post(
        "/commands",
        status_code=202,
        responses=problems(404, 408, 409, 413, 415, 422, 503),
        openapi_extra=json_body(TypeAdapter(CommandRequest), COMMAND_EXAMPLES),
    )
    @needs("operate")
    async def post_command(
        request: Request,
        content_type: Annotated[str | None, Header()] = None,
        idempotency_key: Annotated[str | None, Header()] = None,
    ) -> JSONResponse:
        """Send a command. Its result is at `GET /api/commands/{command_id}`.

        With a `command_id` (or the header Idempotency-Key) it can be sent again: it is executed once.
        """
        if not is_json(content_type):
            return problem(
                415,
                "media_type",
                "Not JSON",
                "the Content-Type is not application/json: send the body as JSON, with Content-Type: application/json",
            )
        command = parse_command_request(await request.body(), idempotency_key)
        command_id = await backend.send_command(command, issued_by=caller_of(request).name)
        return JSONResponse({"command_id": command_id}, 202)

    @api.get(
        "/commands/{command_id}",
        responses=problems(404, besides={202: {"description": "The command is pending."}}),
    )
    @needs("read")
    async def get_command(command_id: str) -> JSONResponse:
        """Return the result of a command: 202 while it is pending, then 200."""
        command = backend.command(command_id)
        if command is None:
            return problem(
                404,
                "unknown_command",
                "Unknown command",
                f"command {command_id} is not in the log: check its id, or whether sending it got 202",
            )
        return JSONResponse(command, 202 if command["status"] == "pending" else 200)

    return api
