"""A service for the SDK's tests: answers as told, in order, and keeps what it was asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

Answer = httpx.Response | Exception


def ok(body: Any, status: int = 200) -> httpx.Response:
    return httpx.Response(status, json=body)


def refused(
    status: int, code: str = "code", detail: str = "Do this.", wait: str | None = None
) -> httpx.Response:
    document = {"type": f"urn:loopwright:problem:{code}", "title": "Title", "status": status, "code": code}
    headers = {"Retry-After": wait} if wait is not None else {}
    return httpx.Response(status, headers=headers, json=document | {"detail": detail})


@dataclass
class Service:
    """`answers` are given one after the other, the last one for ever; an exception breaks the connection."""

    answers: Sequence[Answer]
    asked: list[httpx.Request] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        answer = self.answers[min(len(self.asked), len(self.answers) - 1)]
        self.asked.append(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self)

    def bodies(self) -> list[dict[str, Any]]:
        """What was sent, without the requests that send nothing."""
        return [json.loads(request.content) for request in self.asked if request.content]
