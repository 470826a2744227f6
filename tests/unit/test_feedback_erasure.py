"""Erasures over a log in memory: who may request them, what is written, how progress is reported."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from services.feedback.api.routes import add_erasure_routes
from services.feedback.erasure_handler import ErasureHandler
from services.feedback.settings import FeedbackSettings
from services.feedback.views import ErasureStatusView, KnownLines, VersionsView
from shared.adapters.access_middleware import secure
from shared.adapters.clock import ManualClock
from shared.adapters.http import add_service_routes
from shared.adapters.in_memory import (
    InMemoryCache,
    InMemoryLog,
    InMemoryLogReader,
    InMemoryTransactionalPublisher,
)
from shared.adapters.topic_follower import TopicFollower
from shared.errors import BrokerUnavailable
from shared.events import ErasureReport, ErasureRequest, from_ms
from shared.ports import LogReader, TransactionalPublisher
from shared.pseudonym import Pseudonymiser
from shared.records import Output
from shared.telemetry import Readiness
from shared.topics import ERASED_WITHIN_DAYS
from tests.access import access_of, bearer, make_keys

P = 3
KEY = b"a key that is long enough"
ALICE = {"user_id": "alice", "request_id": "q1"}
SUBJECT = Pseudonymiser(KEY).of("alice")
VERSION = "assistant@v1-0a1b2c3d"


@dataclass
class ErasureApi:
    """The erasure routes. The next publisher raises `failing` before it writes, or after it if `arrives` is set."""

    clock: ManualClock = field(default_factory=lambda: ManualClock(1_772_366_000_000))
    failing: BrokerUnavailable | None = None
    arrives: bool = False
    erasures: ErasureStatusView = field(default_factory=ErasureStatusView)

    def __post_init__(self) -> None:
        self.log = InMemoryLog(P, self.clock)
        self.cache = InMemoryCache(self.clock)
        self.app = FastAPI()
        readiness = Readiness("erasures")
        topics = ["erasure.requests", "erasure.reports"]
        self.follower = TopicFollower(
            "erasures", lambda: self._read(topics), self.erasures.apply, readiness, lambda: None
        )
        add_erasure_routes(add_service_routes(self.app, readiness), self.handler(), self.follower)
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://feedback")

    def handler(
        self, erasures: ErasureStatusView | None = None, identity: str = "process-1"
    ) -> ErasureHandler:
        settings = FeedbackSettings(
            partitions=P,
            ack_timeout_s=0.2,
            erasures_per_minute=3,
        )
        return ErasureHandler(
            settings=settings,
            open_publisher=lambda: self._publisher(identity),
            open_requests=lambda: self._read(["erasure.requests"], [0]),
            cache=self.cache,
            clock=self.clock,
            pseudonymiser=Pseudonymiser(KEY),
            lines=KnownLines(frozenset({"assistant", "support"}), VersionsView(), lambda: True),
            erasures=erasures or self.erasures,
        )

    def _read(self, topics: list[str], partitions: list[int] | None = None) -> LogReader:
        return InMemoryLogReader(self.log, topics, partitions=partitions)

    def _publisher(self, identity: str) -> TransactionalPublisher:
        publisher = InMemoryTransactionalPublisher(self.log, "feedback", identity)
        if self.failing is not None and self.arrives:
            return LostAnswer(publisher, self.failing)
        publisher.failure = self.failing
        return publisher

    async def erase(self, body: dict[str, Any] = ALICE, **headers: str) -> httpx.Response:
        return await self.http.post("/v1/erasure", json=body, headers=headers)

    async def follow(self, request_id: str = "q1") -> httpx.Response:
        return await self.http.get(f"/v1/erasure/{request_id}")

    def requests(self) -> list[ErasureRequest]:
        return [ErasureRequest.from_json(record.value) for record in self.log.records("erasure.requests")]

    def report(self, **fields: Any) -> None:
        """Write a report and apply it at once, without waiting for the follower's thread."""
        defaults = {
            "line": "assistant",
            "request_id": "q1",
            "subject": SUBJECT,
            "service": "processor",
            "partitions": P,
            "completed_at": from_ms(self.clock.now_ms()),
        }
        report = ErasureReport.model_validate(defaults | fields)
        (acked,) = self.log.append(Output("erasure.reports", b"q1", report.to_json()))
        written = InMemoryLogReader(
            self.log, ["erasure.reports"], {(acked.topic, acked.partition): acked.offset}
        )
        self.erasures.apply([record for record in written.poll(0) if record.offset == acked.offset])


@dataclass
class LostAnswer:
    """A publisher whose records arrive although it raises an error."""

    publisher: InMemoryTransactionalPublisher
    error: BrokerUnavailable

    def publish_all(self, records: Sequence[Output]) -> None:
        self.publisher.publish_all(records)
        raise self.error

    def close(self) -> None:
        self.publisher.close()


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Any]]:
    started: list[ErasureApi] = []

    async def build(**fields: Any) -> ErasureApi:
        api = ErasureApi(**fields)
        started.append(api)
        api.follower.start()
        while not api.follower.caught_up:
            await api.http.get("/livez")
        return api

    yield build
    for api in started:
        api.follower.stop()
        await api.http.aclose()


@pytest.fixture
async def api(make: Callable[..., Any]) -> ErasureApi:
    api: ErasureApi = await make()
    return api


def problem(response: httpx.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == response.status_code
    return body


async def test_request_is_in_every_partition_under_the_pseudonym(api: ErasureApi) -> None:
    response = await api.erase()
    assert response.status_code == 202
    records = api.log.records("erasure.requests")
    assert [record.partition for record in records] == list(range(P))
    assert {record.key for record in records} == {SUBJECT.encode()}
    assert not any(b"alice" in (record.value or b"") for record in records)
    now = from_ms(api.clock.now_ms())
    deadline = now + timedelta(days=ERASED_WITHIN_DAYS)
    assert {(r.request_id, r.subject, r.requested_at, r.deadline) for r in api.requests()} == {
        ("q1", SUBJECT, now, deadline)
    }
    status = response.json()
    assert (status["request_id"], status["subject"], status["status"]) == ("q1", SUBJECT, "requested")
    assert datetime.fromisoformat(status["deadline"]) == deadline


def add_erasure_routes_to(api: ErasureApi) -> FastAPI:
    """Return a new app with the erasure routes, which can still get a middleware."""
    app = add_service_routes(FastAPI(), Readiness("erasures"))
    add_erasure_routes(app, api.handler(), api.follower)
    return app


async def test_request_records_the_key_that_issued_it(api: ErasureApi, tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys.json", {"dpo": ["erase"]})
    app = add_erasure_routes_to(api)
    secure(app, access_of(tmp_path / "keys.json", "feedback"))
    api.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://feedback")
    assert (await api.erase()).status_code == 401
    assert (await api.erase(**bearer(keys["dpo"]))).json()["issued_by"] == "dpo"
    assert {request.issued_by for request in api.requests()} == {"dpo"}


async def test_repeated_request_is_written_once(api: ErasureApi) -> None:
    first = await api.erase()
    api.clock.advance(3600)
    again = await api.erase()
    assert (again.status_code, again.json()) == (202, first.json())
    assert len(api.requests()) == P


async def test_idempotency_key_is_the_request_id(api: ErasureApi) -> None:
    body = {"user_id": "alice"}
    first = await api.erase(body, **{"Idempotency-Key": "k1"})
    again = await api.erase(body, **{"Idempotency-Key": "k1"})
    assert (first.json()["request_id"], again.json()) == ("k1", first.json())
    assert (await api.erase(ALICE, **{"Idempotency-Key": "k1"})).status_code == 422
    assert len(api.requests()) == P


async def test_request_without_id_gets_one(api: ErasureApi) -> None:
    first, second = [await api.erase({"user_id": "alice"}) for _ in range(2)]
    assert first.json()["request_id"] != second.json()["request_id"]


async def test_retry_at_another_process_finds_the_first_in_the_log(api: ErasureApi) -> None:
    first = await api.erase()
    # The follower of the second process has not read the request yet.
    answer = api.handler(ErasureStatusView(), identity="process-2").post_erasure(
        b'{"user_id": "alice", "request_id": "q1"}', None, None, issued_by="dpo"
    )
    assert answer.status_code == 202
    assert first.status_code == 202
    assert len(api.requests()) == P


@pytest.mark.parametrize("arrives", [False, True])
async def test_after_a_lost_answer_the_log_decides_what_is_written(
    make: Callable[..., Any], arrives: bool
) -> None:
    api = await make(failing=BrokerUnavailable("the connection broke"), arrives=arrives)
    lost = await api.erase()
    assert lost.status_code == 503
    assert "under the request_id q1" in problem(lost)["detail"]
    api.failing = None
    assert (await api.erase()).status_code == 202
    assert len(api.requests()) == P


async def test_other_user_under_the_same_request_id_is_a_conflict(api: ErasureApi) -> None:
    await api.erase()
    for other in ({"user_id": "bob"}, {"line": "support"}):
        refused = await api.erase(ALICE | other)
        assert refused.status_code == 409
        assert "new request_id" in problem(refused)["detail"]
    assert {request.subject for request in api.requests()} == {SUBJECT}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"user_id": ""}, 422),
        ({"user_id": "a\nb"}, 422),
        ({"user_id": "a" * 257}, 422),
        ({"user_id": "a", "request_id": "with space"}, 422),
        ({"user_id": "a", "request_id": "retract:r/e"}, 422),
        ({"user_id": "a", "line": "UPPER"}, 422),
        ({"user_id": "a", "line": "made-up"}, 422),
        ({"user_id": "a", "else": 1}, 422),
        ({"user_id": "a", "request_id": "x" * 9_000}, 413),
    ],
)
async def test_invalid_request_is_rejected(api: ErasureApi, body: dict[str, Any], status: int) -> None:
    response = await api.erase(body)
    assert response.status_code == status
    problem(response)
    assert api.requests() == []


async def test_erasures_are_rate_limited(api: ErasureApi) -> None:
    codes = [(await api.erase({"user_id": f"u{n}"})).status_code for n in range(4)]
    assert codes == [202, 202, 202, 429]
    api.clock.advance(61)
    assert (await api.erase({"user_id": "u3"})).status_code == 202


async def test_status_follows_an_erasure_from_request_to_trainer(api: ErasureApi) -> None:
    assert (await api.follow()).status_code == 404
    await api.erase()

    async def status() -> dict[str, Any]:
        body: dict[str, Any] = (await api.follow()).json()
        return body

    assert (await status())["status"] == "requested"
    api.report(partition=0, responses=2, signals=3, batches={"assistant-0-1": 1})
    api.report(partition=0, responses=2, signals=3, batches={"assistant-0-1": 1})
    part = await status()
    assert (part["status"], part["partitions_done"], part["partitions"]) == ("in_processor", 1, P)
    for partition in (1, 2):
        api.report(partition=partition, signals=1)
    part = await status()
    assert (part["status"], part["responses"], part["signals"], part["batches"]) == ("in_trainer", 2, 5, 1)
    api.report(service="trainer", line="support", partitions=None)
    assert (await status())["status"] == "in_trainer", (
        "the trainer of another line does not complete this erasure"
    )
    api.report(service="trainer", partitions=None, versions=(VERSION,), snapshots=2)
    done = await status()
    assert (done["status"], done["versions"], done["snapshots"]) == ("done", [VERSION], 2)
    assert VERSION in done["detail"]
    assert done["completed_at"]


async def test_erasure_is_done_when_every_affected_line_has_reported(api: ErasureApi) -> None:
    await api.erase()
    for partition in range(P):
        api.report(partition=partition, batches={f"support-{partition}-1": 1})
    api.report(service="trainer", partitions=None)
    waiting = (await api.follow()).json()
    assert (waiting["status"], "trainer of support" in waiting["detail"]) == ("in_trainer", True)
    api.report(service="trainer", line="support", partitions=None)
    assert (await api.follow()).json()["status"] == "done"


async def test_erasure_past_its_deadline_is_overdue_until_done(api: ErasureApi) -> None:
    await api.erase()
    api.clock.advance(ERASED_WITHIN_DAYS * 86_400 + 1)
    late = (await api.follow()).json()
    assert late["overdue"]
    assert "deadline has passed" in late["detail"]
    for partition in range(P):
        api.report(partition=partition)
    api.report(service="trainer", partitions=None)
    assert not (await api.follow()).json()["overdue"]


def test_reports_are_enough_if_the_request_has_left_the_log() -> None:
    api = ErasureApi()
    for partition in range(P):
        api.report(partition=partition)
    api.report(service="trainer", partitions=None)
    status = api.erasures.status("q1", datetime(2026, 3, 1, tzinfo=UTC))
    assert status is not None
    assert (status.status, status.deadline, status.subject) == ("done", None, SUBJECT)


def test_unreadable_record_hides_no_other() -> None:
    api = ErasureApi()
    api.log.append(Output("erasure.reports", b"k", b"garbage"), Output("erasure.requests", b"k", None))
    api.erasures.apply([*api.log.records("erasure.reports"), *api.log.records("erasure.requests")])
    api.report(partition=0)
    assert api.erasures.status("q1", datetime(2026, 3, 1, tzinfo=UTC)) is not None


async def test_request_id_may_contain_slashes_and_punctuation(api: ErasureApi) -> None:
    await api.erase(ALICE | {"request_id": "a/b?c%"})
    assert (await api.follow("a%2Fb%3Fc%25")).json()["request_id"] == "a/b?c%"
