"""The HTTP app of the console: its data for pages and the CLI, and commands."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from uuid6 import uuid7

from services.console.core import responses
from services.console.core.command_requests import CommandRequest, parse_command_request, to_command
from services.console.core.projection import Projection
from services.console.core.responses import Json
from services.console.settings import ConsoleSettings
from shared.adapters import redis_keys
from shared.adapters.http import add_service_routes, problem
from shared.adapters.origin_check import Forbidden, check_request_origin, is_json
from shared.adapters.topic_follower import TopicFollower
from shared.cloudevents import cloudevent
from shared.errors import BrokerUnavailable, Overloaded, Retryable
from shared.events import Line, from_ms
from shared.ports import Cache, Clock, Publisher
from shared.records import Record
from shared.telemetry import Readiness
from shared.topics import FEEDBACK_EVENTS, OPERATOR_COMMANDS

SERVICE = "console"
LineQuery = Annotated[Line | None, Query(description="absent = the line of this console's settings")]


@dataclass
class ConsoleBackend:
    """The parts that the routes work with, and the state under its lock."""

    settings: ConsoleSettings
    publisher: Publisher
    cache: Cache
    clock: Clock
    accepted: Callable[[], int]
    """How many records `feedback.events` has taken; raises `Retryable`."""
    state: Projection = field(default_factory=Projection)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def apply(self, records: Sequence[Record]) -> None:
        with self.lock:
            self.state.apply(records)

    def status(self, line: str) -> Json:
        collected, run = self._live(redis_keys.collected(line)), self._live(redis_keys.run_progress(line))
        with self.lock:
            shown = responses.status(self.state, line, accepted=None, collected=collected, run=run)
            decided, again = self.state.decided(), self.state.sent_again[FEEDBACK_EVENTS.name]
        # Asked after the ledger is read, so that no outcome is counted whose event is not.
        try:
            accepted = max(0, self.accepted() - again)
        except Retryable:
            return shown
        return shown | {"accepted": accepted, "pending": max(0, accepted - decided)}

    async def command(self, order: CommandRequest) -> str:
        """Returns the command's id once it is in the log. Raises `Rejected` or `BrokerUnavailable`."""
        now = from_ms(self.clock.now_ms())
        with self.lock:
            command = to_command(order, self.state, line=self.settings.line, command_id=str(uuid7()), now=now)
        record = cloudevent(
            OPERATOR_COMMANDS, command.line, command, source=SERVICE, ce_id=command.command_id, at=now
        )
        timeout_s = self.settings.ack_timeout_s
        try:
            await asyncio.wait_for(asyncio.wrap_future(self.publisher.publish(record)), timeout_s + 1)
        except (TimeoutError, BrokerUnavailable, Overloaded) as error:
            raise BrokerUnavailable(
                f"Kafka has not acknowledged command {command.command_id} within {timeout_s:g} s: it may or may not be "
                f"carried out. Ask GET /api/commands/{command.command_id} before giving it again"
            ) from error
        with self.lock:
            self.state.add_command(command)
        return command.command_id

    def _live(self, key: str) -> Json | None:
        """A figure from Redis, where there is one."""
        try:
            found: Any = json.loads(self.cache.get(key) or b"null")
        except ValueError:
            return None
        return found if isinstance(found, dict) else None


def build_app(console: ConsoleBackend, follower: TopicFollower, readiness: Readiness) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        follower.start()
        try:
            yield
        finally:
            await run_in_threadpool(follower.stop)
            await run_in_threadpool(console.publisher.close)

    app = FastAPI(title="Loopwright console", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    add_service_routes(app, readiness)

    @app.exception_handler(Forbidden)
    async def forbidden(_: Request, error: Forbidden) -> JSONResponse:
        return problem(403, error.code, "Forbidden", str(error))

    app.include_router(_routes(console, follower))
    return app


def request_guard(console: ConsoleBackend, follower: TopicFollower) -> Callable[[Request], Awaitable[None]]:
    """What every route of the API asks first: who it is, and whether the state is whole."""

    async def check(request: Request) -> None:
        check_request_origin(request.headers, console.settings.hosts)
        if not follower.caught_up:
            raise BrokerUnavailable("the log has not been read to its end yet: try again in some seconds")

    return check


def _routes(console: ConsoleBackend, follower: TopicFollower) -> APIRouter:
    api = APIRouter(prefix="/api", dependencies=[Depends(request_guard(console, follower))])

    @api.get("/status")
    async def status(line: LineQuery = None) -> Json:
        """What the loop is doing."""
        return await run_in_threadpool(console.status, line or console.settings.line)

    @api.get("/versions")
    async def versions(line: LineQuery = None) -> list[Json]:
        """All versions of the line with their verdicts and figures."""
        with console.lock:
            return responses.versions(console.state, line or console.settings.line)

    @api.get("/rollout")
    async def rollout(line: LineQuery = None) -> list[Json]:
        """The line's rollout records, newest first."""
        with console.lock:
            return responses.rollout(console.state, line or console.settings.line)

    schema = {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": CommandRequest.model_json_schema()}},
        }
    }

    @api.post("/commands", status_code=202, openapi_extra=schema)
    async def give(request: Request, content_type: Annotated[str | None, Header()] = None) -> JSONResponse:
        """Give a command. What came of it: `GET /api/commands/{command_id}`."""
        if not is_json(content_type):
            return problem(415, "media_type", "Not JSON", "send JSON, with Content-Type: application/json")
        return JSONResponse(
            {"command_id": await console.command(parse_command_request(await request.body()))}, 202
        )

    @api.get("/commands/{command_id}")
    async def result(command_id: str) -> JSONResponse:
        """202 while it is pending, then 200 with its result."""
        with console.lock:
            found = responses.command(console.state, command_id)
        if found is None:
            return problem(
                404, "unknown_command", "No such command", f"no command {command_id} was given here"
            )
        return JSONResponse(found, 202 if found["status"] == "pending" else 200)

    return api
