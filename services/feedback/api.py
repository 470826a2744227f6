"""The HTTP app of feedback: routes, and what runs beside them while it serves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any
from urllib.parse import unquote

from fastapi import FastAPI, Header, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from services.feedback.core.receipts import Receipt
from services.feedback.core.schemas import ERASURE_BODY, FEEDBACK_BODY, RESPONSE_BODY
from services.feedback.erasure_handler import ErasureHandler
from services.feedback.erasure_status import ErasureStatus
from services.feedback.handlers import FeedbackHandlers
from shared.adapters.http import add_service_routes, problem
from shared.adapters.topic_follower import TopicFollower
from shared.errors import BrokerUnavailable, LoopwrightError, Malformed
from shared.events import MAX_RECORD_BYTES
from shared.telemetry import FEEDBACK_REFUSED, Readiness

TITLE = "Loopwright feedback"
RECEIPT_PATH = "/v1/feedback/"
ERASURE_PATH = "/v1/erasure/"
# Annotations are strings here, which FastAPI resolves among the names of the module.
TraceParent = Annotated[str | None, Header(description="W3C trace context")]
IdempotencyKey = Annotated[
    str | None, Header(description="an event_id; an alternative to the one in the body")
]
RequestKey = Annotated[
    str | None,
    Header(alias="Idempotency-Key", description="a request_id; an alternative to the one in the body"),
]
Authorization = Annotated[str | None, Header(description="Bearer and the operator's erasure token")]


def build_app(door: FeedbackHandlers, followers: Sequence[TopicFollower], readiness: Readiness) -> FastAPI:
    """The first of `followers` is the one whose state receipts need whole."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for follower in followers:
            follower.start()
        try:
            yield
        finally:
            for follower in followers:
                await run_in_threadpool(follower.stop)
            await run_in_threadpool(door.publisher.close)

    app = FastAPI(title=TITLE, version="1", lifespan=lifespan, docs_url="/docs", redoc_url=None)
    _add_routes(app, door, followers[0])
    return add_service_routes(app, readiness, MAX_RECORD_BYTES)


def _add_routes(app: FastAPI, door: FeedbackHandlers, standing: TopicFollower) -> None:
    @app.post("/v1/feedback", status_code=202, openapi_extra=_described(FEEDBACK_BODY))
    async def feedback(
        request: Request,
        idempotency_key: IdempotencyKey = None,
        traceparent: TraceParent = None,
    ) -> JSONResponse:
        """Say something about a response. Acknowledged only once it is in the log for good."""
        if not _is_json(request):
            return _not_json()
        try:
            return await door.take_feedback(await request.body(), idempotency_key, traceparent)
        except LoopwrightError as error:
            FEEDBACK_REFUSED.labels(error.code).inc()
            raise

    @app.post("/v1/responses", status_code=202, openapi_extra=_described(RESPONSE_BODY))
    async def responses(request: Request, traceparent: TraceParent = None) -> JSONResponse:
        """Record an answer of your own model, so that feedback on it can be learned from."""
        if not _is_json(request):
            return _not_json()
        return await door.take_response(await request.body(), traceparent)

    # Ids may hold a slash (sent as %2F), which only the raw path tells from a separator.
    @app.get(RECEIPT_PATH + "{response_id}/{event_id:path}", response_model=Receipt)
    async def receipt(request: Request) -> Receipt:
        """What became of a feedback event, up to the version that serves."""
        response_id, event_id = _ids(request)
        if not standing.caught_up:
            raise BrokerUnavailable(
                "the versions have not been read to their end yet: try again in some seconds"
            )
        return await run_in_threadpool(door.receipt, response_id, event_id)


def add_erasure_routes(app: FastAPI, eraser: ErasureHandler, erasures: TopicFollower) -> None:
    """The routes of erasure. `erasures` follows what they tell."""

    @app.post("/v1/erasure", status_code=202, openapi_extra=_described(ERASURE_BODY))
    async def erase(
        request: Request,
        idempotency_key: RequestKey = None,
        traceparent: TraceParent = None,
        authorization: Authorization = None,
    ) -> Response:
        """Erase all that a user said and asked. An operator's call; acknowledged once it is in the log for good."""
        refused = eraser.refusal(authorization) or (None if _is_json(request) else _not_json())
        if refused is not None:
            return refused
        raw = await request.body()
        _wait_for(erasures)
        try:
            return await run_in_threadpool(eraser.take, raw, idempotency_key, traceparent)
        except LoopwrightError as error:
            FEEDBACK_REFUSED.labels(error.code).inc()
            raise

    @app.get(ERASURE_PATH + "{request_id:path}", response_model=ErasureStatus)
    async def followed(request: Request, authorization: Authorization = None) -> Response:
        """How far an erasure has come, and which versions were trained from what was erased."""
        refused = eraser.refusal(authorization)
        if refused is not None:
            return refused
        _wait_for(erasures)
        found = eraser.find(unquote(_raw_path(request).removeprefix(ERASURE_PATH)))
        return JSONResponse(found.model_dump(mode="json", exclude_none=True))


def _wait_for(erasures: TopicFollower) -> None:
    if not erasures.caught_up:
        raise BrokerUnavailable("the erasures have not been read to their end yet: try again in some seconds")


def _raw_path(request: Request) -> str:
    raw: bytes = request.scope["raw_path"]
    return raw.split(b"?")[0].decode("ascii", "replace")


def _ids(request: Request) -> tuple[str, str]:
    parts = _raw_path(request).removeprefix(RECEIPT_PATH).split("/")
    if len(parts) != 2 or not all(parts):
        raise Malformed(
            "the path is /v1/feedback/{response_id}/{event_id}, with a slash inside an id sent as %2F"
        )
    return unquote(parts[0]), unquote(parts[1])


def _is_json(request: Request) -> bool:
    return request.headers.get("content-type", "").split(";")[0].strip().lower() == "application/json"


def _not_json() -> JSONResponse:
    FEEDBACK_REFUSED.labels("media_type").inc()
    return problem(
        415, "media_type", "Not JSON", "send the body as JSON, with Content-Type: application/json"
    )


def _described(adapter: Any) -> dict[str, Any]:
    """The body for /docs; it is read by hand, so that depth is bounded and faults are told without what was sent."""
    schema = adapter.json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
