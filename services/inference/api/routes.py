"""HTTP routes: `POST /v1/chat/completions` and `GET /v1/models`, compatible with OpenAI's, and health checks.

Every error has OpenAI's form, on every route.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from services.inference.api.chat_handler import CLIENT_CLOSED_REQUEST, ChatHandler
from services.inference.api.error_schemas import error_response, http_error_response
from services.inference.api.openapi_schemas import (
    CHAT_ANSWERS,
    CHAT_BODY,
    DESCRIPTION,
    ErrorObject,
    ModelList,
    ModelObject,
    errors,
)
from services.inference.api.request_schemas import MAX_NAMED, parse_chat_request
from services.inference.version_registry import ServingState, VersionRegistry
from services.inference.version_swap import Refusal
from shared.adapters.access_headers import is_json
from shared.adapters.access_rules import Denied, needs
from shared.adapters.http import BodyLimit, add_service_routes
from shared.adapters.openapi import publish_openapi
from shared.errors import LoopwrightError, Oversized, UnknownVersion
from shared.limits import MAX_HEADER_BYTES
from shared.telemetry import CHAT_REQUESTS, Readiness
from shared.versions import VersionRef

MAX_BODY_BYTES: Final = 524_288
"""Limit of a request body. The conversation and all of its answers must fit into a record of one megabyte."""
CHAT_PATH: Final = "/v1/chat/completions"
INSTEAD: Final = {
    "/v1/completions": f"this deployment has chat models only: use POST {CHAT_PATH} with `messages`",
    "/v1/responses": f"the Responses API is not available: use POST {CHAT_PATH}; most clients have a setting for it",
    "/v1/embeddings": "this deployment has no embedding model: use another server for embeddings",
    "/v1/moderations": "this deployment has no moderation model: use another server for moderation",
    "/v1/audio": "this deployment has text models only",
    "/v1/images": "this deployment has text models only",
}
"""Parts of OpenAI's API that do not exist here, and what to use instead."""
log = structlog.get_logger(__name__)


class ChatBodyLimit(BodyLimit):
    """`BodyLimit` that answers with OpenAI's error object."""

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        await error_response(Oversized(self._too_large()))(scope, receive, send)

    async def _refuse_headers(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = f"the headers are larger than {MAX_HEADER_BYTES} bytes: send fewer or shorter ones"
        await http_error_response(431, message, "headers_too_large")(scope, receive, send)


def create_app(
    chats: ChatHandler,
    registry: VersionRegistry,
    readiness: Readiness,
    refusals: Callable[[], tuple[Refusal, ...]],
) -> FastAPI:
    """Return the ASGI application. It connects to nothing.

    Args:
        chats: Answers chats.
        registry: Has the versions to list.
        readiness: Checks shown by `/readyz`.
        refusals: Returns the versions that the last swap refused.

    """
    app = FastAPI(title="Loopwright inference", version="1", docs_url=None, redoc_url=None)
    publish_openapi(app, DESCRIPTION, ErrorObject)
    add_service_routes(app, readiness, MAX_BODY_BYTES)
    app.add_middleware(ChatBodyLimit, max_bytes=MAX_BODY_BYTES)
    _add_error_handlers(app)

    @app.post(
        CHAT_PATH,
        response_model=None,
        responses=errors(400, 404, 408, 413, 415, 429, 503, besides=CHAT_ANSWERS),
        openapi_extra=CHAT_BODY,
    )
    @needs("chat")
    async def complete_chat(request: Request) -> Response:
        """Answer a conversation, whole or streamed, and record the answer."""
        if not is_json(request.headers.get("content-type")):
            raise HTTPException(415, "the request must have the header Content-Type: application/json")
        return await chats.handle(parse_chat_request(await request.body()), request)

    @app.get("/v1/models", response_model=None, responses=errors(besides={200: {"model": ModelList}}))
    @needs("chat")
    async def list_models() -> dict[str, Any]:
        """List the line and its loaded versions."""
        return {"object": "list", "data": model_objects(registry.state(), registry.line, refusals())}

    @app.get(
        "/v1/models/{model}",
        response_model=None,
        responses=errors(404, besides={200: {"model": ModelObject}}),
    )
    @needs("chat")
    async def get_model(model: str) -> dict[str, Any]:
        """Show the line, or one loaded version."""
        models = {each["id"]: each for each in model_objects(registry.state(), registry.line, refusals())}
        if model not in models:
            raise UnknownVersion(
                f"the model {model[:MAX_NAMED]!r} is not available; available models: {', '.join(models)}"
            )
        return models[model]

    return app


def refuse(error: Denied) -> Response:
    """Return OpenAI's error object for a refused request. Its clients know the code of a wrong key."""
    code = "invalid_api_key" if error.status == 401 else error.reason
    return http_error_response(error.status, str(error), code)


def _add_error_handlers(app: FastAPI) -> None:
    """Answer every error with OpenAI's error object."""

    @app.exception_handler(LoopwrightError)
    async def on_error(_: Request, error: LoopwrightError) -> JSONResponse:
        CHAT_REQUESTS.labels("none", "refused").inc()
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers) if error.headers else None
        if error.status_code == 404:
            return http_error_response(404, _unknown_path(request), "unknown_url", headers)
        if error.status_code == 405:
            allowed = (headers or {}).get("allow", "another method")
            message = f"{request.method} is not allowed for this path: use {allowed}"
            return http_error_response(405, message, "method_not_allowed", headers)
        code = "unsupported_media_type" if error.status_code == 415 else "invalid_request"
        return http_error_response(error.status_code, str(error.detail), code, headers)

    @app.exception_handler(ClientDisconnect)
    async def on_disconnect(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    @app.exception_handler(Exception)
    async def on_bug(_: Request, error: Exception) -> JSONResponse:
        log.error("request_failed", error=repr(error))
        message = "the server failed because of a bug; the operator finds the reason in its log"
        return http_error_response(500, message, "internal_error")


def _unknown_path(request: Request) -> str:
    path = request.url.path.rstrip("/")
    for prefix, instead in INSTEAD.items():
        if path == prefix or path.startswith(prefix + "/"):
            return f"{prefix} does not exist here: {instead}"
    return f"this path does not exist: use POST {CHAT_PATH} or GET /v1/models"


def model_objects(state: ServingState, line: str, refusals: tuple[Refusal, ...]) -> list[dict[str, Any]]:
    """Return OpenAI's model objects: the line, then each loaded version.

    The field `loopwright` has the state of the rollout, or the role of the version.
    """
    rollout = {
        "stable": state.stable.version,
        "canary": state.canary.version if state.canary else None,
        "share": state.share,
        "seq": state.record.seq if state.record else None,
        "refused": [
            {"version": r.version, "seq": r.seq, "code": r.code, "message": r.message} for r in refusals
        ],
    }
    versions = [_model_object(ref.version, _version_details(ref, state)) for ref in state.loaded]
    return [_model_object(line, rollout), *versions]


def _version_details(ref: VersionRef, state: ServingState) -> dict[str, Any]:
    is_canary = state.canary is not None and ref.version == state.canary.version
    role = "stable" if ref.version == state.stable.version else "canary" if is_canary else "base"
    return {"role": role, "kind": ref.kind, "digest": ref.digest}


def _model_object(model_id: str, details: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": model_id,
        "object": "model",
        "created": 0,
        "owned_by": "loopwright",
        "loopwright": details,
    }
