"""The console's list of what is held: ids and reasons, from what the trainer told last; releasing is a command."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import httpx
import pytest
from fastapi import FastAPI

from services.console.api.quarantine_routes import UNKNOWN, add_quarantine_routes
from services.console.api.routes import ConsoleBackend, build_app
from services.console.core.command_requests import CommandRequest, NoExecutor, to_command
from services.console.core.projection import FOLLOWED_TOPICS, Projection
from services.console.settings import ConsoleSettings
from shared.adapters import redis_keys
from shared.adapters.clock import ManualClock
from shared.adapters.in_memory import InMemoryCache, InMemoryLog, InMemoryLogReader, InMemoryPublisher
from shared.adapters.topic_follower import TopicFollower
from shared.commands import COMMAND, Release
from shared.events import parse_union
from shared.telemetry import Readiness

NOW = datetime(2026, 3, 4, tzinfo=UTC)
REASON = "personal data: a phone number"


class Stand:
    """The console over a log and a cache in memory."""

    def __init__(self) -> None:
        clock = ManualClock()
        self.log, self.cache, ready = InMemoryLog(1, clock), InMemoryCache(clock), Readiness("log")
        settings = ConsoleSettings()
        console = ConsoleBackend(
            settings, InMemoryPublisher(self.log, "console"), self.cache, clock, lambda: 0
        )
        topics = [topic.name for topic in FOLLOWED_TOPICS]
        self.follower = TopicFollower(
            "log", lambda: InMemoryLogReader(self.log, topics), console.apply, ready, lambda: None
        )
        self.app: FastAPI = build_app(console, self.follower, ready)
        add_quarantine_routes(self.app, console, self.follower)

    async def ask(self, method: str, path: str, **more: object) -> httpx.Response:
        async with (
            self.app.router.lifespan_context(self.app),
            httpx.AsyncClient(
                transport=httpx.ASGITransport(self.app), base_url="http://127.0.0.1:8080"
            ) as http,
        ):
            while not self.follower.caught_up:
                await http.get("/livez")
            return await http.request(method, path, **more)  # type: ignore[arg-type]


def told(**changed: object) -> bytes:
    whole = {"held": [["r1", "e1", REASON]], "total": 1, "updated_at": NOW.isoformat()}
    return json.dumps(whole | changed).encode()


async def test_what_the_trainer_told_is_shown_per_line() -> None:
    stand = Stand()
    stand.cache.put(redis_keys.quarantine("assistant"), told(), ttl_s=60)
    stand.cache.put(redis_keys.quarantine("other"), told(held=[], total=0), ttl_s=60)
    held = [{"response_id": "r1", "event_id": "e1", "reason": REASON}]
    whole = {"held": held, "total": 1, "updated_at": NOW.isoformat()}
    assert (await stand.ask("GET", "/api/quarantine")).json() == whole
    stand = Stand()
    stand.cache.put(redis_keys.quarantine("other"), told(held=[], total=0), ttl_s=60)
    assert (await stand.ask("GET", "/api/quarantine?line=other")).json() == whole | {"held": [], "total": 0}


@pytest.mark.parametrize("kept", [None, b"{", b"null", told(total=None), told(held=[["r1"]])])
async def test_what_is_not_known_is_not_called_empty(kept: bytes | None) -> None:
    stand = Stand()
    if kept is not None:
        stand.cache.put(redis_keys.quarantine("assistant"), kept, ttl_s=60)
    assert (await stand.ask("GET", "/api/quarantine")).json() == UNKNOWN


async def test_only_the_console_itself_may_ask() -> None:
    foreign = await Stand().ask("GET", "/api/quarantine", headers={"Origin": "https://elsewhere.example"})
    assert foreign.status_code == 403


async def test_a_release_becomes_a_command_in_the_log() -> None:
    stand = Stand()
    given = await stand.ask("POST", "/api/commands", json={"kind": "release", "response_ids": ["r1", "r2"]})
    assert given.status_code == 202
    (record,) = stand.log.records("operator.commands")
    command = parse_union(COMMAND, record.value)
    assert isinstance(command, Release)
    assert command.response_ids == ("r1", "r2")


@pytest.mark.parametrize("response_ids", [None, []])
async def test_a_release_of_nothing_is_refused(response_ids: list[str] | None) -> None:
    stand = Stand()
    body = {"kind": "release"} | ({} if response_ids is None else {"response_ids": response_ids})
    assert (await stand.ask("POST", "/api/commands", json=body)).status_code == 422
    assert stand.log.records("operator.commands") == []


def test_a_command_that_nobody_carries_out_is_refused() -> None:
    with pytest.raises(NoExecutor, match="no service carries out release yet"):
        to_command(
            CommandRequest(kind="release", response_ids=["r1"]),
            Projection(),
            line="assistant",
            command_id="c1",
            now=NOW,
            executors={"pause": "rollout"},
        )
