"""A fake service for tests of the SDK: it sends the given responses in order and records the requests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

Reply = httpx.Response | Exception


def json_response(body: Any, status: int = 200) -> httpx.Response:
    return httpx.Response(status, json=body)


def problem_response(
    status: int, code: str = "code", detail: str = "Do this.", retry_after: str | None = None
) -> httpx.Response:
    document = {"type": f"urn:loopwright:problem:{code}", "title": "Title", "status": status, "code": code}
    headers = {"Retry-After": retry_after} if retry_after is not None else {}
    return httpx.Response(status, headers=headers, json=document | {"detail": detail})


@dataclass
class FakeService:
    """Sends `replies` one after the other, then repeats the last one. An exception breaks the connection."""

    replies: Sequence[Reply]
    requests: list[httpx.Request] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        reply = self.replies[min(len(self.requests), len(self.replies) - 1)]
        self.requests.append(request)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self)

    def bodies(self) -> list[dict[str, Any]]:
        """Return the bodies of the requests that have one."""
        return [json.loads(request.content) for request in self.requests if request.content]
