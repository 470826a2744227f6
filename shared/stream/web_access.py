"""Asks `Access` about every request to the web views of a stream engine, which Faust serves with aiohttp."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from shared.adapters.access import Access
from shared.adapters.access_headers import read_headers
from shared.adapters.access_rules import HEALTH, Denied, Rule

HEALTH_PATHS: Final = frozenset({"/livez", "/readyz", "/metrics"})
VIEW: Final = Rule("read", is_page=True)
"""What all other views need, those that Faust adds too. People open them in a browser."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def view_rule(path: str) -> Rule:
    """Return what a path needs."""
    return HEALTH if path in HEALTH_PATHS else VIEW


def secure_views(app: web.Application, access: Access) -> None:
    """Check all requests to a web application. Call this before it starts."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            headers = read_headers(request.raw_headers)
            access.admit(view_rule(request.path), request.method, headers, request.remote)
        except Denied as error:
            return _refusal(error)
        return await handler(request)

    app.middlewares.append(check)


def _refusal(error: Denied) -> web.Response:
    body = {
        "type": f"urn:loopwright:problem:{error.reason}",
        "title": error.title,
        "status": error.status,
        "code": error.reason,
        "detail": str(error),
    }
    response = web.json_response(body, status=error.status, content_type="application/problem+json")
    if error.status == 401:
        response.headers["WWW-Authenticate"] = (
            'Basic realm="Loopwright: API key as password", charset="UTF-8"'
        )
    if error.status == 503:
        response.headers["Retry-After"] = "1"
    return response
