"""Around every answer of the console: who may ask at all, and what a browser may do with it.

The routes of `/api` check for themselves. The page, its assets and above all its socket, which carries an operator's
clicks, are answered by NiceGUI, which lets every origin in: so the same rules are laid around the whole app.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.adapters.http import problem
from shared.adapters.origin_check import Forbidden, check_request_origin

OPEN = frozenset({"/livez", "/readyz", "/metrics"})
"""Asked by orchestrators and Prometheus under whatever name they know; they tell nothing about users."""
POLICY = "; ".join(
    (
        "default-src 'self'",
        # NiceGUI starts its page by inline scripts and evaluates its event handlers, Vue compiles templates.
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        # A page that frames the console could make the operator click.
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}
POLICY_VIOLATION = 1008


class SecurityMiddleware:
    """ASGI middleware: refuses foreign hosts and origins, sets the headers above."""

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in OPEN:
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

        async def fenced(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, fenced)
