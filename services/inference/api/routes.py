"""HTTP routes: `POST /v1/chat/completions` and `GET /v1/models`, compatible with OpenAI's, and health checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from services.inference.api.chat_handler import ChatHandler
from services.inference.api.openai_schemas import error_response, parse_chat_request
from services.inference.version_registry import ServingState, VersionRegistry
from services.inference.version_swap import Refusal
from shared.adapters.http import BodyLimit, add_service_routes
from shared.errors import LoopwrightError, Oversized, UnknownVersion
from shared.telemetry import CHAT_REQUESTS, Readiness
from shared.versions import VersionRef

MAX_BODY_BYTES = 524_288
"""Limit of a request body. The conversation and all of its answers must fit into a record of one megabyte."""


class ChatBodyLimit(BodyLimit):
    """`BodyLimit` that answers with OpenAI's error object."""

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        await error_response(Oversized(f"the request body is larger than {self._max} bytes"))(
            scope, receive, send
        )


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
    app = FastAPI(title="Loopwright inference", docs_url=None, redoc_url=None)
    add_service_routes(app, readiness, MAX_BODY_BYTES)
    app.add_middleware(ChatBodyLimit, max_bytes=MAX_BODY_BYTES)

    @app.exception_handler(LoopwrightError)
    async def on_error(_: Request, error: LoopwrightError) -> JSONResponse:
        CHAT_REQUESTS.labels("none", "refused").inc()
        return error_response(error)

    @app.post("/v1/chat/completions", response_model=None)
    async def complete_chat(request: Request) -> Response:
        return await chats.handle(parse_chat_request(await request.body()), request)

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": model_objects(registry.state(), registry.line, refusals())}

    @app.get("/v1/models/{model}")
    async def get_model(model: str) -> dict[str, Any]:
        models = {each["id"]: each for each in model_objects(registry.state(), registry.line, refusals())}
        if model not in models:
            raise UnknownVersion(
                f"the model {model!r} is not available; available models: {', '.join(models)}"
            )
        return models[model]

    return app


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
