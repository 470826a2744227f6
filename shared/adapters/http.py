"""Common parts of the HTTP APIs: health routes, problem documents (RFC 9457), a body limit, a graceful stop.

Only services with an HTTP API import this module; it needs fastapi and uvicorn.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from http import HTTPStatus
from types import FrameType
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.adapters.access_rules import health
from shared.errors import (
    Conflict,
    LoopwrightError,
    NotYet,
    Overloaded,
    Oversized,
    Rejected,
    Retryable,
    UnknownVersion,
)
from shared.limits import MAX_HEADER_BYTES
from shared.request_values import readable_fault
from shared.telemetry import Readiness

MAX_BODY_BYTES = 262_144
BODY_IDLE_S = 30.0
"""Longest wait for the next part of a body."""
CLIENT_CLOSED_REQUEST = 499
"""nginx's status code for a client that disconnected. It only shows up in logs."""
log = structlog.get_logger(__name__)
_STATUS: tuple[tuple[type[LoopwrightError], int], ...] = (
    (Conflict, 409),
    (Oversized, 413),
    (UnknownVersion, 404),
    (Rejected, 422),
    (NotYet, 404),
    (Overloaded, 429),
    (Retryable, 503),
)


_HTTP_ADVICE = {
    404: "there is no such path: check it against /openapi.json",
    405: "this path does not accept the method: use one that the header Allow names",
}


def problem(status: int, code: str, title: str, detail: str, **extra: Any) -> JSONResponse:
    """Return an RFC 9457 problem document.

    `detail` says what to do; `code` is stable, for programs. 429 and 503 carry Retry-After.
    """
    body = {
        "type": f"urn:loopwright:problem:{code}",
        "title": title,
        "status": status,
        "code": code,
        "detail": detail,
    }
    headers = {"Retry-After": "1"} if status in (429, 503) else None
    return JSONResponse(body | extra, status, headers, media_type="application/problem+json")


def status_of(error: LoopwrightError) -> int:
    """Return the HTTP status for an error of the error tree."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def add_service_routes(
    app: FastAPI,
    readiness: Readiness,
    max_body: int = MAX_BODY_BYTES,
    streamed: frozenset[str] = frozenset(),
) -> FastAPI:
    """Add `/livez`, `/readyz`, `/metrics`, problem documents and the body limit to `app`; return it.

    `streamed` are paths whose routes bound their bodies themselves.
    """
    app.add_middleware(BodyLimit, max_bytes=max_body, streamed=streamed)

    @app.get("/livez", include_in_schema=False)
    @health
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", include_in_schema=False)
    @health
    async def readyz() -> JSONResponse:
        ready, checks = readiness.report()
        return JSONResponse({"ready": ready, "checks": checks}, 200 if ready else 503)

    @app.get("/metrics", include_in_schema=False)
    @health
    async def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(LoopwrightError)
    async def known(_: Request, error: LoopwrightError) -> JSONResponse:
        return problem(status_of(error), error.code, type(error).__name__, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        faults = [
            {"where": ".".join(map(str, e["loc"])), "fault": readable_fault(e)} for e in error.errors()[:20]
        ]
        detail = "; ".join(f"{fault['where']}: {fault['fault']}" for fault in faults)
        return problem(422, "invalid", "The request is not valid", detail, errors=faults)

    @app.exception_handler(ClientDisconnect)
    async def disconnected(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        detail = _HTTP_ADVICE.get(error.status_code, str(error.detail))
        response = problem(error.status_code, "http", HTTPStatus(error.status_code).phrase, detail)
        response.headers.update(error.headers or {})
        return response

    return app


class BodyLimit:
    """ASGI middleware that bounds requests.

    It answers 413 to bodies over `max_bytes`, by declared length or once they exceed it, 408 to bodies that stop
    arriving for `idle_s` seconds, and 431 to headers over `MAX_HEADER_BYTES`. Bodies of `streamed` paths are passed on.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int,
        streamed: frozenset[str] = frozenset(),
        idle_s: float = BODY_IDLE_S,
    ) -> None:
        self._app = app
        self._max = max_bytes
        self._streamed = streamed
        self._idle_s = idle_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, unless its body is too large."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            await self._refuse_headers(scope, receive, send)
            return
        if scope["path"] in self._streamed:
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max:
            await self._refuse(scope, receive, send)
            return
        seen = 0
        is_complete = False

        async def bounded() -> Message:
            nonlocal seen, is_complete
            if is_complete:  # the next message is the disconnection, which may come at any time
                return await receive()
            try:
                async with asyncio.timeout(self._idle_s):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    408, f"no part of the body arrived for {self._idle_s:g} s: send the request again"
                ) from None
            is_complete = not message.get("more_body", False)
            seen += len(message.get("body", b""))
            if seen > self._max:
                raise Oversized(
                    f"the body is larger than {self._max} bytes: send less, or split it into several requests"
                )
            return message

        await self._app(scope, bounded, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        await problem(413, Oversized.code, "Oversized", self._too_large())(scope, receive, send)

    async def _refuse_headers(self, scope: Scope, receive: Receive, send: Send) -> None:
        detail = f"the headers are larger than {MAX_HEADER_BYTES} bytes: send fewer or shorter ones"
        await problem(431, "headers_too_large", "Headers too large", detail)(scope, receive, send)

    def _too_large(self) -> str:
        return f"the body is larger than {self._max} bytes: send less, or split it into several requests"


class ServerThread:
    """Serves an app in a thread, next to a service's own main loop (used by the trainer)."""

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        self._server = uvicorn.Server(
            uvicorn.Config(app, host, port, log_config=None, access_log=False, proxy_headers=False)
        )
        self._thread = threading.Thread(target=self._server.run, name="http", daemon=True)

    def start(self) -> None:
        """Start serving."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving; wait up to five seconds for the thread."""
        self._server.should_exit = True
        self._thread.join(5.0)


def serve(app: ASGIApp, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT, then finish open requests for at most ten seconds and return."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        timeout_graceful_shutdown=10,
    )
    server = uvicorn.Server(config)
    stop_gracefully(server)
    server.run()


def stop_gracefully(server: uvicorn.Server) -> None:
    """Handle SIGTERM and SIGINT as a graceful stop, so that the process exits with status 0.

    Before the server runs, a signal makes it end right after its start. While it runs, uvicorn handles signals itself
    and raises the one that stopped it again afterwards; this handler absorbs that.
    """

    def stopped(number: int, _: FrameType | None) -> None:
        log.info("stopped", signal=signal.Signals(number).name)
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stopped)
