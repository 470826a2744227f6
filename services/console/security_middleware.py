"""Middleware that checks Host and Origin of every request and restricts what browsers may do with the answers.

The routes under `/api` check for themselves. The page, its assets and its socket, which carries an operator's clicks,
are answered by NiceGUI, which accepts any origin. The middleware therefore covers the whole app.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.adapters.http import problem
from shared.adapters.origin_check import Forbidden, check_request_origin

UNCHECKED_PATHS: Final = frozenset({"/livez", "/readyz", "/metrics"})
"""Orchestrators and Prometheus request these under any host name; the answers contain nothing about users."""
CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'self'",
        # NiceGUI starts its page with inline scripts and evaluates its event handlers; Vue compiles templates.
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        # A page that could frame the console could trick the operator into clicking.
        "frame-ancestors 'none'",
    )
)
SECURITY_HEADERS: Final = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}
POLICY_VIOLATION: Final = 1008
"""Close code of a WebSocket that is refused (RFC 6455, section 7.4.1)."""


class SecurityMiddleware:
    """ASGI middleware that refuses foreign hosts and origins and sets the security headers."""

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request or WebSocket."""
        if scope["type"] == "lifespan" or scope["path"] in UNCHECKED_PATHS:
            await self._app(scope, receive, send)
            return
        try:
            check_request_origin(Headers(scope=scope), self._hosts)
        except Forbidden as error:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": "forbidden"})
            else:
                await problem(403, error.code, "Forbidden", str(error))(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        await self._app(scope, receive, send_with_headers)
