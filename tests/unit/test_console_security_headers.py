"""The security headers of all the console's answers."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from services.console.security_headers import SecurityHeaders


@pytest.fixture
def protected_app() -> Any:
    app = FastAPI()

    @app.get("/{path:path}")
    async def get_anything(path: str) -> dict[str, str]:
        return {"path": path}

    return SecurityHeaders(app)


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
