"""ASGI middleware that asks `Access` about every request. `secure` adds it to an app whose routes are complete."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from fastapi import FastAPI, Request
from fastapi.routing import iter_route_contexts
from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.routing import Mount, compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.adapters.access import ANONYMOUS, Access, Caller
from shared.adapters.access_headers import read_headers
from shared.adapters.access_rules import ANY_KEY, PUBLIC, Denied, Rule, declared_rule
from shared.adapters.http import problem
from shared.errors import Misconfigured

CALLER: Final = "loopwright.caller"
CORS_HEADERS: Final = {
    "Access-Control-Allow-Methods": "POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key, traceparent",
    "Access-Control-Max-Age": "600",
}
POLICY_VIOLATION: Final = 1008
"""Close code of a WebSocket that is refused (RFC 6455, section 7.4.1)."""


@dataclass(frozen=True, slots=True)
class RouteRule:
    """A route, and what it needs."""

    path: str
    methods: frozenset[str] | None
    """None: all, and WebSockets."""
    pattern: re.Pattern[str]
    rule: Rule


def route_rules(app: FastAPI, mounts: Rule | None = None) -> tuple[RouteRule, ...]:
    """Return what each route of an app needs, in the order in which the app tries them.

    Raises:
        Misconfigured: if a route declares nothing.

    """
    documents = {app.openapi_url, app.docs_url, app.redoc_url, app.swagger_ui_oauth2_redirect_url}
    rules = []
    for route in iter_route_contexts(app.routes):
        path = str(route.path)
        is_mount = isinstance(route.original_route, Mount)
        rule = mounts if is_mount else declared_rule(route.endpoint)
        if rule is None and path in documents:
            rule = PUBLIC
        if rule is None:
            raise Misconfigured(
                f"the route {path} declares no scope: add @needs(...) or @public to its function"
            )
        pattern, _, _ = compile_path(f"{path}/{{path:path}}" if is_mount else path)
        methods = frozenset(route.methods) if route.methods else None
        rules.append(RouteRule(path, methods, pattern, rule))
    return tuple(rules)


def rule_for(rules: Sequence[RouteRule], path: str, method: str) -> Rule:
    """Return what a request needs: the first route that takes it, else the first route with its path."""
    other_method: Rule | None = None
    for each in rules:
        if each.pattern.match(path):
            if each.methods is None or method in each.methods:
                return each.rule
            other_method = other_method or each.rule
    return other_method or ANY_KEY


def route_path(scope: Scope) -> str:
    """Return the path of a request as the app's routes see it, without the prefix under which a proxy serves it."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and (path == root or path.startswith(f"{root}/")) else path


def refusal(error: Denied) -> Response:
    """Return a refusal as a problem document."""
    return problem(error.status, error.reason, error.title, str(error))


def caller_of(request: Request) -> Caller:
    """Return who sent a request."""
    caller = request.scope.get(CALLER, ANONYMOUS)
    assert isinstance(caller, Caller)
    return caller


def secure(
    app: FastAPI,
    access: Access,
    *,
    mounts: Rule | None = None,
    refuse: Callable[[Denied], Response] = refusal,
) -> None:
    """Check all requests of an app. Call this after its last route was added.

    Args:
        app: The app.
        access: Decides.
        mounts: What mounted apps need.
        refuse: Returns the response to a refused request.

    Raises:
        Misconfigured: if a route declares nothing.

    """
    route_rules(app, mounts)
    app.add_middleware(
        AccessMiddleware, access=access, routes=lambda: route_rules(app, mounts), refuse=refuse
    )


class AccessMiddleware:
    """Passes a request on with its `Caller`, or answers it itself if it is refused."""

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        routes: Callable[[], Sequence[RouteRule]],
        refuse: Callable[[Denied], Response] = refusal,
    ) -> None:
        self._app = app
        self._access = access
        self._routes = routes
        self._refuse = refuse
        self._rules: Sequence[RouteRule] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request or WebSocket."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if self._rules is None:  # with the first request, because the app may have got routes since
            self._rules = self._routes()
        is_socket = scope["type"] == "websocket"
        method = "GET" if is_socket else scope["method"]
        path, headers = route_path(scope), dict[str, str]()
        rule = rule_for(self._rules, path, method)
        try:
            headers = read_headers(scope["headers"])
            peer = scope["client"][0] if scope.get("client") else None
            asked = headers.get("access-control-request-method")
            if method == "OPTIONS" and asked is not None:
                rule = rule_for(self._rules, path, asked)
                origin = self._access.preflight(rule, headers, peer)
                await Response(status_code=204, headers=CORS_HEADERS | _allowing(origin))(
                    scope, receive, send
                )
                return
            scope[CALLER] = self._access.admit(rule, method, headers, peer, is_socket=is_socket)
        except Denied as error:
            if is_socket:
                await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": error.reason})
                return
            await self._answer(error, rule, headers)(scope, receive, send)
            return
        page = self._access.cors_origin(rule, headers)
        await self._app(scope, receive, send if page is None else _with_cors(send, page))

    def _answer(self, error: Denied, rule: Rule, headers: dict[str, str]) -> Response:
        response = self._refuse(error)
        if origin := self._access.cors_origin(rule, headers):
            response.headers.update(_allowing(origin))  # so that the page can read why
        if error.status == 401:
            # Browsers ask their user for a key (as the password) where they show a page.
            shows_page = rule.is_page and "text/html" in headers.get("accept", "")
            response.headers["WWW-Authenticate"] = (
                'Basic realm="Loopwright: API key as password", charset="UTF-8"' if shows_page else "Bearer"
            )
        return response


def _allowing(origin: str) -> dict[str, str]:
    return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}


def _with_cors(send: Send, origin: str) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(
                _allowing(origin) | {"Access-Control-Expose-Headers": "Retry-After"}
            )
        await send(message)

    return send_with_headers
