"""The security middleware around the whole console."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message, Scope

from services.console.security_middleware import SecurityMiddleware


@pytest.fixture
def protected_app() -> Any:
    app = FastAPI()

    @app.get("/{path:path}")
    async def get_anything(path: str) -> dict[str, str]:
        return {"path": path}

    return SecurityMiddleware(app, {"console"})


async def test_every_answer_forbids_other_hosts_and_frames(protected_app: Any) -> None:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(protected_app), base_url="http://console:8080"
    ) as http:
        policy = (await http.get("/")).headers["content-security-policy"]
    sources = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert sources["default-src"] == "'self'"
    assert sources["frame-ancestors"] == sources["object-src"] == "'none'"
    words = {word for rule in sources.values() for word in rule.split()}
    assert words <= {"'self'", "'none'", "'unsafe-inline'", "'unsafe-eval'", "data:"}


@pytest.mark.parametrize("path", ["/", "/_nicegui_ws/socket.io/", "/_nicegui/x.js", "/api/status"])
async def test_foreign_host_or_origin_is_refused_everywhere(protected_app: Any, path: str) -> None:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(protected_app), base_url="http://127.0.0.1"
    ) as http:
        assert (await http.get(path, headers={"host": "evil.example"})).status_code == 403
        assert (await http.get(path, headers={"origin": "https://evil.example"})).status_code == 403
        assert (await http.get(path)).status_code == 200
        assert (await http.get("/readyz", headers={"host": "any.name"})).status_code == 200


@pytest.mark.parametrize(
    ("headers", "accepted"),
    [
        ([(b"host", b"127.0.0.1:8080"), (b"origin", b"http://127.0.0.1:8080")], True),
        ([(b"host", b"127.0.0.1:8080"), (b"origin", b"http://evil.example")], False),
        ([(b"host", b"evil.example:8080"), (b"origin", b"http://evil.example:8080")], False),
    ],
)
async def test_foreign_websocket_is_refused_before_it_opens(
    headers: list[tuple[bytes, bytes]], accepted: bool
) -> None:
    reached, sent = [], []

    async def inner(scope: Scope, *_: Any) -> None:
        reached.append(scope["type"])

    async def send(message: Message) -> None:
        sent.append(message["type"])

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": "/_nicegui_ws/socket.io/", "headers": headers}
    await SecurityMiddleware(inner, set())(scope, receive, send)
    assert (reached, sent) == ((["websocket"], []) if accepted else ([], ["websocket.close"]))
