"""The console's HTTP interface over a log and a cache in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from services.console.api.routes import ConsoleBackend, build_app
from services.console.core.projection import FOLLOWED_TOPICS
from services.console.settings import ConsoleSettings
from shared.adapters import redis_keys
from shared.adapters.clock import ManualClock
from shared.adapters.in_memory import InMemoryCache, InMemoryLog, InMemoryLogReader, InMemoryPublisher
from shared.adapters.origin_check import Forbidden, check_request_origin
from shared.adapters.topic_follower import TopicFollower
from shared.commands import COMMAND, CommandResult
from shared.errors import BrokerUnavailable
from shared.events import LogRecord, Outcome, OutcomeKind, parse_union
from shared.records import Output
from shared.telemetry import Readiness
from shared.versions import ModelVersion, RolloutRecord, VersionRef

NOW = datetime(2026, 3, 4, tzinfo=UTC)
BASE = VersionRef(version="assistant@base-00000000", kind="base", digest="0" * 64)
PROMOTE = {"kind": "promote", "line": "assistant", "version": BASE.version}


@dataclass
class Stage:
    log: InMemoryLog
    cache: InMemoryCache
    publisher: InMemoryPublisher
    console: ConsoleBackend
    http: httpx.AsyncClient
    accepted: list[int] = field(default_factory=lambda: [0])
    """What the broker says; empty = it is away."""

    async def write(self, topic: str, made: LogRecord) -> None:
        """Returns when the console has read it."""
        before = repr(self.console.state)
        self.log.append(Output(topic, b"k", made.to_json()))
        async with asyncio.timeout(10):
            while repr(self.console.state) == before:
                await self.http.get("/livez")

    async def get(self, path: str) -> Any:
        response = await self.http.get(path)
        assert response.status_code == 200, response.text
        return response.json()


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    clock = ManualClock()
    log, cache, ready = InMemoryLog(6, clock), InMemoryCache(clock), Readiness("log")
    publisher, accepted = InMemoryPublisher(log, "console"), [0]

    def count() -> int:
        if not accepted:
            raise BrokerUnavailable("away")
        return accepted[0]

    console = ConsoleBackend(ConsoleSettings(hosts=frozenset({"console"})), publisher, cache, clock, count)
    topics = [topic.name for topic in FOLLOWED_TOPICS]
    base = ModelVersion(line="assistant", ref=BASE, base=BASE.version, base_model="b", created_at=NOW)
    log.append(Output("model.versions", b"v", base.to_json()))
    follower = TopicFollower(
        "log", lambda: InMemoryLogReader(log, topics), console.apply, ready, lambda: None
    )
    app = build_app(console, follower, ready)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as http:
            while not follower.caught_up:
                await http.get("/livez")
            yield Stage(log, cache, publisher, console, http, accepted)


def problem(response: httpx.Response, status: int, code: str) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == code
    return str(response.json()["detail"])


async def test_the_status_shows_log_and_live_figures(stage: Stage) -> None:
    stage.cache.put(redis_keys.collected("assistant"), b'{"usable": 3, "needed": 24}', ttl_s=60)
    stage.cache.put(redis_keys.run_progress("assistant"), b'{"stage": "train"}', ttl_s=60)
    outcome = Outcome(
        line="assistant", response_id="r", event_id="e", outcome=OutcomeKind.BATCHED, decided_at=NOW
    )
    await stage.write("feedback.outcomes", outcome)
    first = RolloutRecord(
        line="assistant", seq=1, action="adopt_base", stable=BASE, reason="base", decided_at=NOW
    )
    await stage.write("model.rollout", first)
    stage.accepted[:] = [5]
    shown = await stage.get("/api/status")
    assert shown["serving"]["version"] == BASE.version
    assert (shown["accepted"], shown["ledger"], shown["pending"]) == (5, {"batched": 1}, 4)
    assert (shown["collected"], shown["run"]) == ({"usable": 3, "needed": 24}, {"stage": "train"})
    assert [v["serving"] for v in await stage.get("/api/versions")] == [True]
    assert [r["seq"] for r in await stage.get("/api/rollout")] == [1]


async def test_redis_and_kafka_away_leave_what_is_known(stage: Stage) -> None:
    stage.cache.away = True
    stage.accepted.clear()
    shown = await stage.get("/api/status")
    assert (shown["accepted"], shown["pending"], shown["collected"], shown["run"]) == (None, None, None, None)
    assert shown["versions"] == 1


@pytest.mark.parametrize("junk", [b"junk", b"[1]", b'"x"', b"\xff"])
async def test_junk_in_redis_is_shown_as_nothing(stage: Stage, junk: bytes) -> None:
    stage.cache.put(redis_keys.collected("assistant"), junk, ttl_s=60)
    assert (await stage.get("/api/status"))["collected"] is None


async def test_another_line_is_shown_on_request_and_a_bad_name_refused(stage: Stage) -> None:
    assert await stage.get("/api/versions?line=other") == []
    problem(await stage.http.get("/api/status?line=NO"), 422, "invalid")


async def test_a_command_is_in_the_log_when_it_is_accepted_and_its_result_is_told(stage: Stage) -> None:
    given = await stage.http.post("/api/commands", json=PROMOTE)
    assert given.status_code == 202
    command_id = given.json()["command_id"]
    (record,) = stage.log.records("operator.commands")
    command = parse_union(COMMAND, record.value)
    assert (record.key, command.command_id, command.kind) == (b"assistant", command_id, "promote")
    asked = await stage.http.get(f"/api/commands/{command_id}")
    assert (asked.status_code, asked.json()["status"]) == (202, "pending")
    result = CommandResult(
        line="assistant",
        command_id=command_id,
        status="done",
        message="ok",
        executor="rollout",
        finished_at=NOW,
    )
    await stage.write("operator.results", result)
    told = await stage.get(f"/api/commands/{command_id}")
    assert (told["status"], told["message"]) == ("done", "ok")
    problem(await stage.http.get("/api/commands/nobody"), 404, "unknown_command")


@pytest.mark.parametrize(
    ("order", "status", "code"),
    [
        ({"kind": "shout"}, 422, "unknown_kind"),
        ({"kind": "replay", "positions": ["a/0/1"]}, 422, "malformed"),
        ({"kind": "replay", "positions": []}, 422, "malformed"),
        ({"kind": "promote", "version": "assistant@v9-99999999"}, 404, "unknown_version"),
        ({"kind": "pin", "version": BASE.version, "line": "other"}, 404, "unknown_version"),
        ({"kind": "rollback", "version": "assistant@v9-99999999"}, 404, "unknown_version"),
        ({"kind": "promote"}, 422, "malformed"),
        ({"kind": "promote", "version": "nonsense"}, 422, "malformed"),
        ({"kind": "train_now", "now": True}, 422, "malformed"),
        ({"kind": "train_now", "line": "BAD LINE"}, 422, "malformed"),
        ({"kind": "rollback", "dry_run": True}, 422, "malformed"),
        ({}, 422, "malformed"),
    ],
    ids=json.dumps,
)
async def test_an_order_that_cannot_be_carried_out_is_refused(
    stage: Stage, order: dict[str, Any], status: int, code: str
) -> None:
    problem(await stage.http.post("/api/commands", json=order), status, code)
    assert stage.log.records("operator.commands") == []


@pytest.mark.parametrize("kind", ["rollback", "pause", "resume", "train_now", "export_dataset"])
async def test_orders_without_a_version_are_taken(stage: Stage, kind: str) -> None:
    assert (await stage.http.post("/api/commands", json={"kind": kind})).status_code == 202


async def test_a_dry_run_is_told_from_a_run(stage: Stage) -> None:
    for fields in ({}, {"dry_run": True}):
        assert (
            await stage.http.post("/api/commands", json={"kind": "train_now"} | fields)
        ).status_code == 202
    given = [parse_union(COMMAND, record.value) for record in stage.log.records("operator.commands")]
    assert [one.dry_run for one in given if one.kind == "train_now"] == [False, True]


async def test_a_command_that_kafka_does_not_acknowledge_is_not_accepted(stage: Stage) -> None:
    stage.publisher.failure = BrokerUnavailable("away")
    detail = problem(await stage.http.post("/api/commands", json=PROMOTE), 503, "broker_unavailable")
    assert "/api/commands/" in detail


async def test_another_sites_page_cannot_command(stage: Stage) -> None:
    raw = json.dumps(PROMOTE).encode()
    for media in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        sent = await stage.http.post("/api/commands", content=raw, headers={"content-type": media})
        problem(sent, 415, "media_type")
    for origin in ("https://evil.example", "http://127.0.0.1:9999", "null", "http://127.0.0.1"):
        problem(
            await stage.http.post("/api/commands", json=PROMOTE, headers={"origin": origin}), 403, "forbidden"
        )
    for path in ("/api/status", "/api/versions", "/api/commands/c"):
        problem(await stage.http.get(path, headers={"host": "evil.example"}), 403, "forbidden")
    assert stage.log.records("operator.commands") == []
    own = {"origin": "http://127.0.0.1:8080"}
    assert (await stage.http.post("/api/commands", json=PROMOTE, headers=own)).status_code == 202


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8080", "localhost:8080", "localhost", "[::1]:8080", "10.0.0.7", "console:8080"]
)
def test_the_console_is_reached_by_address_by_localhost_and_by_the_names_given(host: str) -> None:
    check_request_origin({"host": host, "origin": f"http://{host}"}, {"console"})
    check_request_origin({"host": host}, {"console"})


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "consol"]
)
def test_a_foreign_name_for_the_same_address_is_refused(host: str) -> None:
    with pytest.raises(Forbidden):
        check_request_origin({"host": host}, {"console"})


async def test_nothing_is_told_before_the_log_is_read_to_its_end() -> None:
    log, ready = InMemoryLog(6), Readiness("log")
    console = ConsoleBackend(
        ConsoleSettings(), InMemoryPublisher(log, "console"), InMemoryCache(), ManualClock(), lambda: 0
    )
    follower = TopicFollower(
        "log", lambda: InMemoryLogReader(log, ["model.versions"]), console.apply, ready, lambda: None
    )
    app = build_app(console, follower, ready)  # its lifespan has not begun
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http:
        problem(await http.get("/api/status"), 503, "broker_unavailable")
        assert (await http.get("/readyz")).status_code == 503
        assert (await http.get("/livez")).status_code == 200
