"""The console's API over a log and a cache in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from services.console.api.routes import build_app
from services.console.backend import ConsoleBackend
from services.console.core.ledger import CountedRecords
from services.console.core.projection import FOLLOWED_TOPICS
from services.console.settings import ConsoleSettings
from shared.adapters import redis_keys
from shared.adapters.clock import ManualClock
from shared.adapters.in_memory import InMemoryCache, InMemoryLog, InMemoryLogReader, InMemoryPublisher
from shared.adapters.topic_follower import TopicFollower
from shared.commands import COMMAND, CommandResult, Skip
from shared.errors import BrokerUnavailable
from shared.events import LogRecord, Outcome, OutcomeKind, parse_union
from shared.live_status import CollectedStatus, RunProgress
from shared.records import Output
from shared.serving import ServingReport
from shared.telemetry import Readiness
from shared.versions import ModelVersion, RolloutRecord, VersionRef

NOW = datetime(2026, 3, 4, tzinfo=UTC)
BASE = VersionRef(version="assistant@base-00000000", kind="base", digest="0" * 64)
PROMOTE = {"kind": "promote", "line": "assistant", "version": BASE.version}
SKIP = {
    "kind": "skip",
    "topic": "feedback.events",
    "partition": 3,
    "offset": 1042,
    "reason": "wrong data of an import",
}


COLLECTED = CollectedStatus(
    usable=3,
    needed=24,
    users=2,
    users_needed=5,
    examples=9,
    held={"agreement: disputed": 1},
    batches=4,
    reason="3 of 24 usable examples",
    updated_at=NOW,
)
RUN = RunProgress(run_id="r-1", stage="training", step=1, steps=4, share=0.25, updated_at=NOW)


@dataclass
class ConsoleApi:
    log: InMemoryLog
    cache: InMemoryCache
    publisher: InMemoryPublisher
    backend: ConsoleBackend
    http: httpx.AsyncClient
    accepted: list[int] = field(default_factory=lambda: [0])
    """What the broker counts on `feedback.events`; empty if it is not reachable."""

    async def write(self, topic: str, record: LogRecord) -> None:
        """Write a record and return once the console has read it."""
        before = repr(self.backend.state)
        self.log.append(Output(topic, b"k", record.to_json()))
        async with asyncio.timeout(10):
            while repr(self.backend.state) == before:
                await self.http.get("/livez")

    async def get(self, path: str) -> Any:
        response = await self.http.get(path)
        assert response.status_code == 200, response.text
        return response.json()


@pytest.fixture
async def api() -> AsyncIterator[ConsoleApi]:
    clock = ManualClock()
    log, cache, readiness = InMemoryLog(6, clock), InMemoryCache(clock), Readiness("log")
    publisher, accepted = InMemoryPublisher(log, "console"), [0]

    def count(since_ms: int) -> CountedRecords:
        if not accepted:
            raise BrokerUnavailable("away")
        return CountedRecords(accepted[0], complete=True)

    settings = ConsoleSettings()
    backend = ConsoleBackend(settings, publisher, cache, clock, count)
    topics = [topic.name for topic in FOLLOWED_TOPICS]
    base = ModelVersion(line="assistant", ref=BASE, base=BASE.version, base_model="b", created_at=NOW)
    log.append(Output("model.versions", b"v", base.to_json()))
    follower = TopicFollower(
        "log", lambda: InMemoryLogReader(log, topics), backend.apply, readiness, lambda: None
    )
    app = build_app(backend, follower, readiness)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as http:
        follower.start()
        while not follower.caught_up:
            await http.get("/livez")
        yield ConsoleApi(log, cache, publisher, backend, http, accepted)
        follower.stop()


def problem(response: httpx.Response, status: int, code: str) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == code
    return str(response.json()["detail"])


async def test_status_combines_the_log_and_the_live_status(api: ConsoleApi) -> None:
    api.cache.put(redis_keys.collected("assistant"), COLLECTED.to_json(), ttl_s=60)
    api.cache.put(redis_keys.run_progress("assistant"), RUN.to_json(), ttl_s=60)
    outcome = Outcome(
        line="assistant", response_id="r", event_id="e", outcome=OutcomeKind.BATCHED, decided_at=NOW
    )
    await api.write("feedback.outcomes", outcome)
    first = RolloutRecord(
        line="assistant", seq=1, action="adopt_base", stable=BASE, reason="base", decided_at=NOW
    )
    await api.write("model.rollout", first)
    api.accepted[:] = [5]
    status = await api.get("/api/status")
    assert status["serving"]["version"] == BASE.version
    assert (status["accepted"], status["ledger"], status["pending"]) == (5, {"batched": 1}, 4)
    assert status["collected"] == json.loads(COLLECTED.to_json())
    assert status["run"] == json.loads(RUN.to_json())
    assert [v["serving"] for v in await api.get("/api/versions")] == [False]
    report = ServingReport(line="assistant", replica="one", stable=BASE.version, reported_at=NOW)
    await api.write("model.serving", report)
    assert [v["serving"] for v in await api.get("/api/versions")] == [True]
    served = await api.get("/api/status")
    assert served["serving"]["replicas"] == {"live": 1, "serving": 1, "canary": 0, "refused": None}
    assert [r["seq"] for r in await api.get("/api/rollout")] == [1]


async def test_status_without_redis_and_kafka_shows_what_is_known(api: ConsoleApi) -> None:
    api.cache.away = True
    api.accepted.clear()
    status = await api.get("/api/status")
    assert (status["accepted"], status["pending"], status["collected"], status["run"]) == (
        None,
        None,
        None,
        None,
    )
    assert status["versions"] == 1


@pytest.mark.parametrize("junk", [b"junk", b"[1]", b'"x"', b"\xff", b'{"usable": 3, "needed": 24}', b"{}"])
async def test_unreadable_live_status_is_absent(api: ConsoleApi, junk: bytes) -> None:
    api.cache.put(redis_keys.collected("assistant"), junk, ttl_s=60)
    api.cache.put(redis_keys.run_progress("assistant"), junk, ttl_s=60)
    status = await api.get("/api/status")
    assert (status["collected"], status["run"]) == (None, None)


async def test_line_can_be_chosen_and_must_be_valid(api: ConsoleApi) -> None:
    assert await api.get("/api/versions?line=other") == []
    problem(await api.http.get("/api/status?line=NO"), 422, "invalid")


async def test_skip_is_recorded_with_its_record_and_reason(api: ConsoleApi) -> None:
    assert (await api.http.post("/api/commands", json=SKIP)).status_code == 202
    (record,) = api.log.records("operator.commands")
    command = parse_union(COMMAND, record.value)
    assert isinstance(command, Skip)
    assert (command.topic, command.partition, command.offset) == ("feedback.events", 3, 1042)
    assert command.reason == "wrong data of an import"
    assert command.issued_by == "operator"


async def test_accepted_command_is_in_the_log_and_gets_its_result(api: ConsoleApi) -> None:
    accepted = await api.http.post("/api/commands", json=PROMOTE)
    assert accepted.status_code == 202
    command_id = accepted.json()["command_id"]
    (record,) = api.log.records("operator.commands")
    command = parse_union(COMMAND, record.value)
    assert (record.key, command.command_id, command.kind) == (b"assistant", command_id, "promote")
    pending = await api.http.get(f"/api/commands/{command_id}")
    assert pending.json()["issued_by"] == "operator"
    assert (pending.status_code, pending.json()["status"]) == (202, "pending")
    result = CommandResult(
        line="assistant",
        command_id=command_id,
        status="done",
        message="ok",
        executor="rollout",
        finished_at=NOW,
    )
    await api.write("operator.results", result)
    body = await api.get(f"/api/commands/{command_id}")
    assert (body["status"], body["message"]) == ("done", "ok")
    problem(await api.http.get("/api/commands/unknown"), 404, "unknown_command")


@pytest.mark.parametrize(
    ("request_body", "status", "code"),
    [
        ({"kind": "shout"}, 422, "unknown_kind"),
        ({"kind": "replay", "positions": ["a/0/1"]}, 422, "malformed"),
        ({"kind": "replay", "positions": []}, 422, "malformed"),
        ({"kind": "skip"}, 422, "malformed"),
        (SKIP | {"reason": ""}, 422, "malformed"),
        (SKIP | {"topic": "training.batches"}, 422, "malformed"),
        (SKIP | {"offset": -1}, 422, "malformed"),
        ({"kind": "pause", "reason": "why not"}, 422, "malformed"),
        ({"kind": "promote", "version": "assistant@v9-99999999"}, 404, "unknown_version"),
        ({"kind": "pin", "version": BASE.version, "line": "other"}, 404, "unknown_version"),
        ({"kind": "rollback", "version": "assistant@v9-99999999"}, 404, "unknown_version"),
        ({"kind": "rollback", "leaving": "assistant@v9-99999999"}, 404, "unknown_version"),
        ({"kind": "pause", "leaving": BASE.version}, 422, "malformed"),
        ({"kind": "pause", "command_id": "a b"}, 422, "malformed"),
        ({"kind": "promote"}, 422, "malformed"),
        ({"kind": "promote", "version": "nonsense"}, 422, "malformed"),
        ({"kind": "train_now", "now": True}, 422, "malformed"),
        ({"kind": "train_now", "line": "BAD LINE"}, 422, "malformed"),
        ({"kind": "rollback", "dry_run": True}, 422, "malformed"),
        ({"kind": "export_dataset", "again": True}, 422, "malformed"),
        ({"kind": "train_now", "again": True, "dry_run": True}, 422, "malformed"),
        ({}, 422, "malformed"),
    ],
    ids=json.dumps,
)
async def test_invalid_command_is_rejected(
    api: ConsoleApi, request_body: dict[str, Any], status: int, code: str
) -> None:
    problem(await api.http.post("/api/commands", json=request_body), status, code)
    assert api.log.records("operator.commands") == []


@pytest.mark.parametrize("kind", ["rollback", "pause", "resume", "train_now", "export_dataset"])
async def test_command_without_a_version_is_accepted(api: ConsoleApi, kind: str) -> None:
    assert (await api.http.post("/api/commands", json={"kind": kind})).status_code == 202


@pytest.mark.parametrize("by_header", [False, True], ids=["body", "header"])
async def test_command_sent_again_with_its_id_is_one_command(api: ConsoleApi, by_header: bool) -> None:
    body = PROMOTE if by_header else PROMOTE | {"command_id": "mine"}
    headers = {"idempotency-key": "mine"} if by_header else {}
    for _ in range(2):
        response = await api.http.post("/api/commands", json=body, headers=headers)
        assert (response.status_code, response.json()["command_id"]) == (202, "mine")
    assert len(api.log.records("operator.commands")) == 1


async def test_command_may_be_sent_again_after_a_missing_acknowledgement(api: ConsoleApi) -> None:
    body = {"kind": "rollback", "command_id": "mine", "leaving": BASE.version}
    api.publisher.failure = BrokerUnavailable("away")
    detail = problem(await api.http.post("/api/commands", json=body), 503, "broker_unavailable")
    assert "same command_id" in detail
    api.publisher.failure = None
    assert (await api.http.post("/api/commands", json=body)).status_code == 202


async def test_command_id_of_another_command_is_a_conflict(api: ConsoleApi) -> None:
    assert (await api.http.post("/api/commands", json=PROMOTE | {"command_id": "c"})).status_code == 202
    other = await api.http.post("/api/commands", json={"kind": "pause", "command_id": "c"})
    problem(other, 409, "conflict")
    assert len(api.log.records("operator.commands")) == 1


async def test_two_different_ids_in_one_request_are_rejected(api: ConsoleApi) -> None:
    response = await api.http.post(
        "/api/commands", json=PROMOTE | {"command_id": "a"}, headers={"idempotency-key": "b"}
    )
    problem(response, 422, "malformed")
    bad = await api.http.post("/api/commands", json=PROMOTE, headers={"idempotency-key": "a b"})
    problem(bad, 422, "malformed")


async def test_dry_run_is_part_of_the_command(api: ConsoleApi) -> None:
    for fields in ({}, {"dry_run": True}, {"again": True}):
        assert (await api.http.post("/api/commands", json={"kind": "train_now"} | fields)).status_code == 202
    commands = [parse_union(COMMAND, record.value) for record in api.log.records("operator.commands")]
    assert [command.dry_run for command in commands if command.kind == "train_now"] == [False, True, False]
    assert [command.again for command in commands if command.kind == "train_now"] == [False, False, True]


async def test_command_without_acknowledgement_is_not_accepted(api: ConsoleApi) -> None:
    api.publisher.failure = BrokerUnavailable("away")
    detail = problem(await api.http.post("/api/commands", json=PROMOTE), 503, "broker_unavailable")
    assert "/api/commands/" in detail


async def test_content_that_is_not_json_is_no_command(api: ConsoleApi) -> None:
    raw = json.dumps(PROMOTE).encode()
    for media in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        response = await api.http.post("/api/commands", content=raw, headers={"content-type": media})
        problem(response, 415, "media_type")
    assert api.log.records("operator.commands") == []


async def test_api_is_unavailable_until_the_log_has_been_read() -> None:
    log, readiness = InMemoryLog(6), Readiness("log")
    backend = ConsoleBackend(
        ConsoleSettings(), InMemoryPublisher(log, "console"), InMemoryCache(), ManualClock(), lambda: 0
    )
    follower = TopicFollower(
        "log", lambda: InMemoryLogReader(log, ["model.versions"]), backend.apply, readiness, lambda: None
    )
    app = build_app(backend, follower, readiness)  # the follower is not started
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http:
        problem(await http.get("/api/status"), 503, "broker_unavailable")
        assert (await http.get("/readyz")).status_code == 503
        assert (await http.get("/livez")).status_code == 200
