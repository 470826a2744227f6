"""The board that all pages look at, and the fence around them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message, Scope

from services.console.api.routes import ConsoleBackend
from services.console.core.projection import Projection
from services.console.core.responses import dead_letters
from services.console.pages.refresher import STALE_MS, PageRefresher
from services.console.security_middleware import SecurityMiddleware
from services.console.settings import ConsoleSettings
from shared.adapters import redis_keys
from shared.adapters.clock import ManualClock
from shared.adapters.in_memory import InMemoryCache, InMemoryLog, InMemoryLogReader, InMemoryPublisher
from shared.adapters.topic_follower import TopicFollower
from shared.errors import BrokerUnavailable
from shared.records import Record
from shared.telemetry import Readiness

NOW = datetime(2026, 3, 4, tzinfo=UTC)


class Caught(TopicFollower):
    """A follower of which the test says how far it is."""

    caught = True

    @property
    def caught_up(self) -> bool:
        return self.caught


@dataclass
class Stage:
    board: PageRefresher
    clock: ManualClock
    cache: InMemoryCache
    follower: Caught
    counts: dict[str, int | None]
    """What the broker says; None = it is away."""


@pytest.fixture
def stage() -> Stage:
    clock, log = ManualClock(), InMemoryLog(6)
    counts: dict[str, int | None] = {"chats": 40, "accepted": 10}
    cache = InMemoryCache(clock)

    def asked(name: str) -> int:
        found = counts[name]
        if found is None:
            raise BrokerUnavailable("away")
        return found

    console = ConsoleBackend(
        ConsoleSettings(), InMemoryPublisher(log, "console"), cache, clock, lambda: asked("accepted")
    )
    follower = Caught(
        "log", lambda: InMemoryLogReader(log, []), console.apply, Readiness("log"), lambda: None
    )
    return Stage(PageRefresher(console, follower, lambda: asked("chats")), clock, cache, follower, counts)


def test_a_board_knows_nothing_before_the_log_is_read_and_then_what_the_log_says(stage: Stage) -> None:
    stage.follower.caught = False
    stage.board.refresh()
    assert not stage.board.view.read
    stage.follower.caught = True
    stage.board.refresh()
    assert (stage.board.view.read, stage.board.view.loop.arrows[0].count) == (True, "40")
    assert stage.board.view.events.accepted == "10"


def test_readings_add_up_to_a_rate_and_a_line_of_losses(stage: Stage) -> None:
    for second in range(10):
        stage.counts["accepted"] = 10 + second * 3
        run = f'{{"run_id": "r", "stage": "train", "step": {second}, "steps": 20, "loss": {2 - second / 10}}}'
        stage.cache.put(redis_keys.run_progress("assistant"), run.encode(), ttl_s=60)
        stage.board.refresh()
        stage.clock.advance(1)
    assert stage.board.view.events.rate == "180 a minute"
    assert stage.board.view.progress is not None
    assert len(stage.board.view.progress.losses) == 10
    assert "polyline" in stage.board.parts["run"]


def test_a_broker_that_is_away_leaves_the_board_standing(stage: Stage) -> None:
    stage.counts.update(chats=None, accepted=None)
    stage.board.refresh()
    assert stage.board.view.loop.arrows[0].count == "–"
    assert "Kafka does not answer" in stage.board.parts["headline"]


def test_a_board_that_no_longer_reads_says_so(stage: Stage) -> None:
    stage.board.refresh()
    assert not stage.board.stale
    stage.clock.advance(STALE_MS / 1000 + 1)
    assert stage.board.stale


def test_the_last_dead_letters_are_kept_without_what_they_held() -> None:
    state = Projection()
    for offset in range(70):
        why = (
            ("dl_topic", b"feedback.events"),
            ("dl_class", b"malformed"),
            ("dl_message", str(offset).encode()),
            ("dl_service", b"processor"),
        )
        state.apply([Record("dead.letters", 0, offset, 1_770_000_000_000 + offset, b"k", b"a secret", why)])
    shown = dead_letters(state)
    assert (state.dead_letters, len(shown)) == (70, 50)
    assert shown[0] == {
        "topic": "feedback.events",
        "code": "malformed",
        "message": "69",
        "service": "processor",
        "at": "2026-02-02T02:40:00.069000+00:00",
    }
    assert "secret" not in str(shown)


# --- the fence ----------------------------------------------------------------------------------------------------


@pytest.fixture
def fenced() -> Any:
    app = FastAPI()

    @app.get("/{path:path}")
    async def anything(path: str) -> dict[str, str]:
        return {"path": path}

    return SecurityMiddleware(app, {"console"})


async def test_every_answer_forbids_other_hosts_and_frames(fenced: Any) -> None:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(fenced), base_url="http://console:8080"
    ) as http:
        policy = (await http.get("/")).headers["content-security-policy"]
    sources = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert sources["default-src"] == "'self'"
    assert sources["frame-ancestors"] == sources["object-src"] == "'none'"
    named = {word for rule in sources.values() for word in rule.split()}
    assert named <= {"'self'", "'none'", "'unsafe-inline'", "'unsafe-eval'", "data:"}


@pytest.mark.parametrize("path", ["/", "/_nicegui_ws/socket.io/", "/_nicegui/x.js", "/api/status"])
async def test_a_foreign_host_or_origin_gets_no_answer_from_anything(fenced: Any, path: str) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(fenced), base_url="http://127.0.0.1") as http:
        assert (await http.get(path, headers={"host": "evil.example"})).status_code == 403
        assert (await http.get(path, headers={"origin": "https://evil.example"})).status_code == 403
        assert (await http.get(path)).status_code == 200
        assert (await http.get("/readyz", headers={"host": "any.name"})).status_code == 200


@pytest.mark.parametrize(
    ("headers", "let_in"),
    [
        ([(b"host", b"127.0.0.1:8080"), (b"origin", b"http://127.0.0.1:8080")], True),
        ([(b"host", b"127.0.0.1:8080"), (b"origin", b"http://evil.example")], False),
        ([(b"host", b"evil.example:8080"), (b"origin", b"http://evil.example:8080")], False),
    ],
)
async def test_a_foreign_socket_is_refused_before_it_is_opened(
    headers: list[tuple[bytes, bytes]], let_in: bool
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
    assert (reached, sent) == ((["websocket"], []) if let_in else ([], ["websocket.close"]))
