"""The list of what can be released from quarantine, by the trainer's live status; releasing is a command."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import httpx
import pytest
from fastapi import FastAPI

from services.console.api.quarantine_routes import add_quarantine_routes
from services.console.api.routes import build_app
from services.console.backend import ConsoleBackend
from services.console.core.command_requests import CommandRequest, NoExecutor, to_command
from services.console.core.projection import FOLLOWED_TOPICS, Projection
from services.console.settings import ConsoleSettings
from shared.adapters import redis_keys
from shared.adapters.clock import ManualClock
from shared.adapters.in_memory import InMemoryCache, InMemoryLog, InMemoryLogReader, InMemoryPublisher
from shared.adapters.topic_follower import TopicFollower
from shared.commands import COMMAND, Release
from shared.events import parse_union
from shared.live_status import QuarantinedEvent, QuarantineStatus
from shared.telemetry import Readiness

NOW = datetime(2026, 3, 4, tzinfo=UTC)
REASON = "personal data: a phone number"
UNKNOWN = {"held": [], "total": None, "updated_at": None}


class ConsoleApi:
    """The console over a log and a cache in memory."""

    def __init__(self) -> None:
        clock = ManualClock()
        self.log, self.cache, readiness = InMemoryLog(1, clock), InMemoryCache(clock), Readiness("log")
        backend = ConsoleBackend(
            ConsoleSettings(), InMemoryPublisher(self.log, "console"), self.cache, clock, lambda: 0
        )
        topics = [topic.name for topic in FOLLOWED_TOPICS]
        self.follower = TopicFollower(
            "log", lambda: InMemoryLogReader(self.log, topics), backend.apply, readiness, lambda: None
        )
        self.app: FastAPI = build_app(backend, self.follower, readiness)
        add_quarantine_routes(self.app, backend, self.follower)

    async def request(self, method: str, path: str, **options: object) -> httpx.Response:
        """Send the only request of a test."""
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app), base_url="http://127.0.0.1:8080"
        ) as http:
            self.follower.start()
            while not self.follower.caught_up:
                await http.get("/livez")
            response = await http.request(method, path, **options)  # type: ignore[arg-type]
            self.follower.stop()
            return response


def status_json(**changes: object) -> bytes:
    """Return the trainer's status with one event in quarantine, or with these fields changed."""
    status = QuarantineStatus(held=(QuarantinedEvent("r1", "e1", REASON),), total=1, updated_at=NOW)
    return json.dumps(json.loads(status.to_json()) | changes).encode()


async def test_quarantine_is_listed_per_line() -> None:
    api = ConsoleApi()
    api.cache.put(redis_keys.quarantine("assistant"), status_json(), ttl_s=60)
    api.cache.put(redis_keys.quarantine("other"), status_json(held=[], total=0), ttl_s=60)
    held = [{"response_id": "r1", "event_id": "e1", "reason": REASON}]
    body = {"held": held, "total": 1, "updated_at": NOW.isoformat()}
    assert (await api.request("GET", "/api/quarantine")).json() == body
    api = ConsoleApi()
    api.cache.put(redis_keys.quarantine("other"), status_json(held=[], total=0), ttl_s=60)
    other = (await api.request("GET", "/api/quarantine?line=other")).json()
    assert other == body | {"held": [], "total": 0}


@pytest.mark.parametrize("stored", [None, b"{", b"null", status_json(total=None), status_json(held=[["r1"]])])
async def test_unknown_quarantine_is_not_called_empty(stored: bytes | None) -> None:
    api = ConsoleApi()
    if stored is not None:
        api.cache.put(redis_keys.quarantine("assistant"), stored, ttl_s=60)
    assert (await api.request("GET", "/api/quarantine")).json() == UNKNOWN


async def test_release_becomes_a_command_in_the_log() -> None:
    api = ConsoleApi()
    response = await api.request(
        "POST", "/api/commands", json={"kind": "release", "response_ids": ["r1", "r2"]}
    )
    assert response.status_code == 202
    (record,) = api.log.records("operator.commands")
    command = parse_union(COMMAND, record.value)
    assert isinstance(command, Release)
    assert command.response_ids == ("r1", "r2")


@pytest.mark.parametrize("response_ids", [None, []])
async def test_release_of_nothing_is_rejected(response_ids: list[str] | None) -> None:
    api = ConsoleApi()
    body = {"kind": "release"} | ({} if response_ids is None else {"response_ids": response_ids})
    assert (await api.request("POST", "/api/commands", json=body)).status_code == 422
    assert api.log.records("operator.commands") == []


def test_command_without_an_executor_is_rejected() -> None:
    with pytest.raises(NoExecutor, match="no service executes release yet"):
        to_command(
            CommandRequest(kind="release", response_ids=["r1"]),
            Projection(),
            line="assistant",
            command_id="c1",
            issued_by="operator",
            now=NOW,
            executors={"pause": "rollout"},
        )
