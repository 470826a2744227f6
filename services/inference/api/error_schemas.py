"""OpenAI's error objects, for every error that a route can answer with."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from fastapi.responses import JSONResponse

from services.inference.core.generation_request import ContextExceeded, InvalidParameter
from shared.chat_format import TemplateRefused
from shared.errors import (
    LoopwrightError,
    Malformed,
    Overloaded,
    Oversized,
    Rejected,
    Retryable,
    UnknownVersion,
)


class GenerationFailed(LoopwrightError):
    """The engine failed to answer; the response was recorded as failed."""

    code = "generation_failed"


_ERRORS: Final[tuple[tuple[type[LoopwrightError], int, str, str | None], ...]] = (
    (UnknownVersion, 404, "invalid_request_error", "model_not_found"),
    (Oversized, 413, "invalid_request_error", None),
    (InvalidParameter, 400, "invalid_request_error", None),
    (Malformed, 400, "invalid_request_error", "invalid_request"),
    (Rejected, 400, "invalid_request_error", None),
    (Overloaded, 429, "rate_limit_error", "queue_full"),
    (Retryable, 503, "service_unavailable_error", None),
    (LoopwrightError, 500, "server_error", None),
)
"""Error class, HTTP status, OpenAI's type and code. The first class that matches counts; without a code, its own."""
_PARAMS: Final[tuple[tuple[type[LoopwrightError], str], ...]] = (
    (UnknownVersion, "model"),
    (ContextExceeded, "messages"),
    (TemplateRefused, "messages"),
)


def error_object(message: str, error_type: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    """Return OpenAI's error object."""
    return {"error": {"message": message, "type": error_type, "param": param, "code": code}}


def error_body(error: LoopwrightError) -> tuple[int, dict[str, Any]]:
    """Return the HTTP status and OpenAI's error object."""
    status, error_type, code = next((s, t, c) for cls, s, t, c in _ERRORS if isinstance(error, cls))
    if isinstance(error, InvalidParameter):
        param = error.param
    else:
        param = next((name for kind, name in _PARAMS if isinstance(error, kind)), None)
    return status, error_object(str(error), error_type, code or error.code, param)


def error_response(error: LoopwrightError) -> JSONResponse:
    """Return the error as an HTTP response."""
    status, body = error_body(error)
    return JSONResponse(body, status, {"Retry-After": "1"} if status in (429, 503) else None)


def http_error_response(
    status: int, message: str, code: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    """Return an error of HTTP itself, such as an unknown path, with OpenAI's error object."""
    error_type = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    return JSONResponse(error_object(message, error_type, code), status, headers)
