"""Routes of the feedback API."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Annotated, Any, Final
from urllib.parse import unquote

from fastapi import FastAPI, Header, Request, Response
from fastapi.responses import JSONResponse
from pydantic import TypeAdapter
from starlette.concurrency import run_in_threadpool
from starlette.types import StatelessLifespan

from services.feedback.api.bulk_routes import BULK_PATHS, BulkResult, DryRun, add_bulk_routes
from services.feedback.browser_tokens import BrowserTokens
from services.feedback.bulk_handlers import BulkHandlers
from services.feedback.core.answers import (
    ERASURE_EXAMPLES,
    FEEDBACK_EXAMPLES,
    RESPONSE_EXAMPLES,
    TOKEN_EXAMPLES,
    FeedbackAnswer,
    ResponseAnswer,
)
from services.feedback.core.browser_feedback import DEFAULT_LIFETIME_S, TOKEN_BODY, Token
from services.feedback.core.erasure_status import ErasureStatus
from services.feedback.core.receipts import Receipt
from services.feedback.core.schemas import ERASURE_BODY, FEEDBACK_BODY, RESPONSE_BODY, parse_body
from services.feedback.erasure_handler import ErasureHandler
from services.feedback.handlers import FeedbackHandlers
from services.feedback.langfuse.score_handlers import ScoreHandlers
from services.feedback.widget import WidgetScript
from shared.adapters.access_headers import is_json
from shared.adapters.access_middleware import caller_of
from shared.adapters.access_rules import needs, public
from shared.adapters.http import add_service_routes, problem
from shared.adapters.openapi import json_body, path_parameter, problems, publish_openapi
from shared.adapters.topic_follower import TopicFollower
from shared.errors import BrokerUnavailable, LoopwrightError, Malformed
from shared.events import MAX_RECORD_BYTES, Id
from shared.telemetry import FEEDBACK_REFUSED, Readiness

RECEIPT_PATH: Final = "/v1/feedback/"
SCORES_PATH: Final = "/api/public/scores"
ERASURE_PATH: Final = "/v1/erasure/"
DESCRIPTION: Final = (
    "Send users' feedback on answers of a model, record answers of your own model, follow what became of feedback, and "
    "erase users. `docs/decisions/ids-and-values.md` has the rules for ids, numbers, texts and times."
)
VALID_RESPONSE: Final[dict[str, Any]] = {"model": ResponseAnswer, "description": "A dry run found no fault."}
_DRY_RUN: Final[dict[str, Any]] = {
    "name": "dryrun",
    "in": "query",
    "required": False,
    "schema": {"type": "boolean", "default": False},
    "description": "Validate, and report hints and conflicts, but write nothing.",
}
ID_SCHEMA: Final = TypeAdapter(Id).json_schema()
# Annotations are strings in this module; FastAPI resolves them among the module's names.
TraceParent = Annotated[str | None, Header(description="W3C trace context.")]
_EVENT_HEADERS: Final = [
    {"name": name, "in": "header", "required": False, "schema": {"type": "string"}, "description": text}
    for name, text in (
        ("Idempotency-Key", "The event_id, if the body has none."),
        ("traceparent", "W3C trace context."),
    )
]
"""Headers of `POST /v1/feedback`. FastAPI's parameters take a fifth of the time that its handler needs."""
RequestKey = Annotated[
    str | None, Header(alias="Idempotency-Key", description="The request_id, if the body has none.")
]


def build_app(
    handlers: FeedbackHandlers,
    versions: TopicFollower,
    readiness: Readiness,
    lifespan: StatelessLifespan[FastAPI] | None = None,
) -> FastAPI:
    """Return the app with the routes of feedback, responses and receipts.

    Args:
        handlers: what the routes call.
        versions: follows the topics that receipts depend on; until it has caught up, receipts get 503.
        readiness: what `/readyz` reports.
        lifespan: runs around the serving of requests.

    """
    app = FastAPI(
        title="Loopwright feedback", version="1", lifespan=lifespan, docs_url="/docs", redoc_url=None
    )
    publish_openapi(app, DESCRIPTION, BulkResult)
    _add_feedback_routes(app, handlers, versions)
    add_widget_route(app)
    add_bulk_routes(app, BulkHandlers(handlers))
    return add_service_routes(app, readiness, MAX_RECORD_BYTES, BULK_PATHS)


def _add_feedback_routes(app: FastAPI, handlers: FeedbackHandlers, versions: TopicFollower) -> None:
    @app.post(
        "/v1/feedback",
        status_code=202,
        response_model=FeedbackAnswer,
        responses=problems(
            408,
            409,
            413,
            415,
            422,
            429,
            503,
            besides={200: {"model": FeedbackAnswer, "description": "A repeated event, or a dry run."}},
        ),
        openapi_extra=json_body(FEEDBACK_BODY, FEEDBACK_EXAMPLES)
        | {"parameters": [*_EVENT_HEADERS, _DRY_RUN]},
    )
    @needs("ingest", for_browsers=True)
    async def post_feedback(request: Request) -> Response:
        """Send feedback on a response. The answer comes only once the event is durable in Kafka."""
        if not is_json(request.headers.get("content-type")):
            return _not_json()
        try:
            return await handlers.post_feedback(
                await request.body(),
                request.headers.get("idempotency-key"),
                request.headers.get("traceparent"),
                caller_of(request),
                dry_run=_is_dry_run(request),
            )
        except LoopwrightError as error:
            FEEDBACK_REFUSED.labels(error.code).inc()
            raise

    @app.post(
        "/v1/responses",
        status_code=202,
        response_model=ResponseAnswer,
        responses=problems(408, 413, 415, 422, 429, 503, besides={200: VALID_RESPONSE}),
        openapi_extra=json_body(RESPONSE_BODY, RESPONSE_EXAMPLES),
    )
    @needs("ingest")
    async def post_response(
        request: Request, traceparent: TraceParent = None, dry_run: DryRun = False
    ) -> Response:
        """Record a response of your own model, so that feedback on it can be trained on."""
        if not is_json(request.headers.get("content-type")):
            return _not_json()
        return await handlers.post_response(
            await request.body(), traceparent, caller_of(request), dry_run=dry_run
        )

    # Ids may contain slashes, sent as %2F. Only the raw path distinguishes them from separators. The second route is
    # for a response_id that begins with one, which the first cannot match.
    @app.get(
        RECEIPT_PATH + "{response_id}/{event_id:path}",
        response_model=Receipt,
        responses=problems(404, 422, 429, 503),
        openapi_extra={
            "parameters": [
                path_parameter("response_id", ID_SCHEMA, "Id of the response; a slash within it as %2F."),
                path_parameter("event_id", ID_SCHEMA, "Id of the event, likewise."),
            ]
        },
    )
    @app.get(RECEIPT_PATH + "{ids:path}", response_model=Receipt, include_in_schema=False)
    @needs("read")
    async def get_receipt(request: Request) -> Receipt:
        """Follow a feedback event to its outcome, batch, version and serving state."""
        response_id, event_id = _receipt_ids(request)
        if not versions.caught_up:
            raise BrokerUnavailable(
                "feedback is still reading the versions from Kafka: try again in a few seconds"
            )
        return await run_in_threadpool(handlers.get_receipt, response_id, event_id)


def add_widget_route(app: FastAPI) -> None:
    """Add the route of the feedback widget's script."""
    widget = WidgetScript()

    # Without a key: the script is the same for everybody.
    @app.get("/v1/widget.js", response_class=Response)
    @public
    async def get_widget(if_none_match: Annotated[str | None, Header()] = None) -> Response:
        """Return the script that defines `<loopwright-feedback>`."""
        return widget.response(if_none_match)


def add_erasure_routes(app: FastAPI, handler: ErasureHandler, erasures: TopicFollower) -> None:
    """Add the routes of erasure. `erasures` follows the progress of erasures; until it has caught up, they get 503."""

    @app.post(
        "/v1/erasure",
        status_code=202,
        response_model=ErasureStatus,
        responses=problems(401, 403, 408, 409, 413, 415, 422, 429, 503),
        openapi_extra=json_body(ERASURE_BODY, ERASURE_EXAMPLES),
    )
    @needs("erase")
    async def post_erasure(
        request: Request,
        idempotency_key: RequestKey = None,
        traceparent: TraceParent = None,
    ) -> Response:
        """Erase all data of a user. The answer comes only once the request is durable in Kafka."""
        if not is_json(request.headers.get("content-type")):
            return _not_json()
        raw = await request.body()
        _require_caught_up(erasures)
        try:
            return await run_in_threadpool(
                handler.post_erasure, raw, idempotency_key, traceparent, issued_by=caller_of(request).name
            )
        except LoopwrightError as error:
            FEEDBACK_REFUSED.labels(error.code).inc()
            raise

    @app.get(
        ERASURE_PATH + "{request_id:path}",
        response_model=ErasureStatus,
        responses=problems(401, 403, 404, 503),
        openapi_extra={
            "parameters": [path_parameter("request_id", ID_SCHEMA, "Id of the request; a slash as %2F.")]
        },
    )
    @needs("erase")
    async def get_erasure(request: Request) -> Response:
        """Show how far an erasure is, and which versions were trained on the erased data."""
        _require_caught_up(erasures)
        status = handler.get_status(unquote(_raw_path(request).removeprefix(ERASURE_PATH)))
        return JSONResponse(status.model_dump(mode="json", exclude_none=True))


def add_token_routes(app: FastAPI, tokens: BrowserTokens | None) -> None:
    """Add the route. Without `tokens` it answers 403."""

    @app.post(
        "/v1/feedback-tokens",
        status_code=201,
        response_model=Token,
        responses=problems(401, 403, 408, 413, 415, 422, 503),
        openapi_extra=json_body(TOKEN_BODY, TOKEN_EXAMPLES),
    )
    @needs("ingest")
    async def post_token(request: Request) -> JSONResponse:
        """Make a token with which a browser may send feedback on one response, without an API key."""
        if tokens is None:
            return problem(
                403,
                "tokens_not_configured",
                "Browser tokens are not configured",
                "LOOPWRIGHT_FEEDBACK_TOKEN_KEY is not set: set it to 32 random characters, and restart feedback",
            )
        wanted = parse_body(TOKEN_BODY, await request.body())
        token, expires_at = tokens.issue(
            wanted.response_id, wanted.user_id, wanted.lifetime_s or DEFAULT_LIFETIME_S
        )
        made = Token(token=token, response_id=wanted.response_id, expires_at=expires_at)
        return JSONResponse(made.model_dump(mode="json"), 201)


def add_langfuse_routes(app: FastAPI, handlers: ScoreHandlers) -> None:
    """Add Langfuse-compatible routes. Their definition is Langfuse's own, so the OpenAPI document leaves them out.

    Langfuse clients authenticate with Basic: the password, their secret key, is the API key; their public key may be
    anything.
    """

    @app.post(SCORES_PATH, include_in_schema=False)
    @needs("ingest")
    async def post_score(request: Request, traceparent: TraceParent = None) -> Response:
        """Create a score, replace the one with this id, or take a list of scores."""
        return await _counting_refusals(
            handlers.post_score(await request.body(), traceparent, caller_of(request))
        )

    @app.delete(SCORES_PATH + "/{score_id:path}", include_in_schema=False)
    @needs("ingest")
    async def delete_score(request: Request, traceparent: TraceParent = None) -> Response:
        """Delete a score."""
        score_id = unquote(_raw_path(request).partition(f"{SCORES_PATH}/")[2])
        return await _counting_refusals(handlers.delete_score(score_id, traceparent))

    @app.post("/api/public/ingestion", include_in_schema=False)
    @needs("ingest")
    async def post_batch(request: Request, traceparent: TraceParent = None) -> Response:
        """Take a batch of events."""
        return await _counting_refusals(
            handlers.post_batch(await request.body(), traceparent, caller_of(request))
        )


async def _counting_refusals(answer: Awaitable[Response]) -> Response:
    try:
        return await answer
    except LoopwrightError as error:
        FEEDBACK_REFUSED.labels(error.code).inc()
        raise


def _require_caught_up(erasures: TopicFollower) -> None:
    if not erasures.caught_up:
        raise BrokerUnavailable(
            "feedback is still reading the erasures from Kafka: try again in a few seconds"
        )


def _raw_path(request: Request) -> str:
    raw: bytes = request.scope["raw_path"]
    return raw.split(b"?")[0].decode("ascii", "replace")


def _receipt_ids(request: Request) -> tuple[str, str]:
    parts = _raw_path(request).removeprefix(RECEIPT_PATH).split("/")
    if len(parts) != 2 or not all(parts):
        raise Malformed(
            "the path is not /v1/feedback/{response_id}/{event_id}: give both ids, with a slash inside an id sent "
            "as %2F"
        )
    return unquote(parts[0]), unquote(parts[1])


def _is_dry_run(request: Request) -> bool:
    """Return the query parameter `dryrun`. Raise `Malformed` if it is neither true nor false."""
    value = request.query_params.get("dryrun", "false").lower()
    if value not in _BOOLEANS:
        raise Malformed("dryrun is neither true nor false: send dryrun=true, or leave it out")
    return _BOOLEANS[value]


_BOOLEANS: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def _not_json() -> JSONResponse:
    FEEDBACK_REFUSED.labels("media_type").inc()
    return problem(
        415,
        "media_type",
        "Not JSON",
        "the Content-Type is not application/json: send the body as JSON, with Content-Type: application/json",
    )
