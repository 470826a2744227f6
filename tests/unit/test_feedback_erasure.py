"""The door's erasures over a log in memory: who may ask, what is written, how it is followed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr, ValidationError

from services.feedback.api import add_erasure_routes
from services.feedback.erasure_handler import ErasureHandler
from services.feedback.erasure_status import ErasureStatusView
from services.feedback.settings import FeedbackSettings
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

P = 3
KEY = b"a key that is long enough"
TOKEN = "the operator's own token"
ALICE = {"user_id": "alice", "request_id": "q1"}
SUBJECT = Pseudonymiser(KEY).of("alice")
VERSION = "assistant@v1-0a1b2c3d"


@dataclass
class Stage:
    """`failing` is raised by the next publisher, before it writes or (with `arrives`) after it."""

    token: str | None = TOKEN
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
        add_erasure_routes(add_service_routes(self.app, readiness), self.eraser(), self.follower)
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://feedback")

    def eraser(self, erasures: ErasureStatusView | None = None, identity: str = "door-1") -> ErasureHandler:
        settings = FeedbackSettings(
            partitions=P,
            ack_timeout_s=0.2,
            erasures_per_minute=3,
            erasure_token=SecretStr(self.token) if self.token else None,
        )
        return ErasureHandler(
            settings=settings,
            open_publisher=lambda: self._publisher(identity),
            open_requests=lambda: self._read(["erasure.requests"], [0]),
            cache=self.cache,
            clock=self.clock,
            pseudonyms=Pseudonymiser(KEY),
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

    async def erase(
        self, body: dict[str, Any] = ALICE, token: str | None = TOKEN, **headers: str
    ) -> httpx.Response:
        shown = {"Authorization": f"Bearer {token}"} if token else {}
        return await self.http.post("/v1/erasure", json=body, headers=shown | headers)

    async def follow(self, request_id: str = "q1", token: str | None = TOKEN) -> httpx.Response:
        shown = {"Authorization": f"Bearer {token}"} if token else {}
        return await self.http.get(f"/v1/erasure/{request_id}", headers=shown)

    def requests(self) -> list[ErasureRequest]:
        return [ErasureRequest.from_json(record.value) for record in self.log.records("erasure.requests")]

    def report(self, **more: Any) -> None:
        """The follower has a thread of its own; what it would hand on is applied here and now."""
        said = {
            "line": "assistant",
            "request_id": "q1",
            "subject": SUBJECT,
            "service": "processor",
            "partitions": P,
            "completed_at": from_ms(self.clock.now_ms()),
        }
        report = ErasureReport.model_validate(said | more)
        (acked,) = self.log.append(Output("erasure.reports", b"q1", report.to_json()))
        written = InMemoryLogReader(
            self.log, ["erasure.reports"], {(acked.topic, acked.partition): acked.offset}
        )
        self.erasures.apply([record for record in written.poll(0) if record.offset == acked.offset])


@dataclass
class LostAnswer:
    """A publisher whose records arrive while its answer does not."""

    publisher: InMemoryTransactionalPublisher
    error: BrokerUnavailable

    def publish_all(self, records: Sequence[Output]) -> None:
        self.publisher.publish_all(records)
        raise self.error

    def close(self) -> None:
        self.publisher.close()


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Any]]:
    made: list[Stage] = []

    async def build(**told: Any) -> Stage:
        stage = Stage(**told)
        made.append(stage)
        stage.follower.start()
        while not stage.follower.caught_up:
            await stage.http.get("/livez")
        return stage

    yield build
    for stage in made:
        stage.follower.stop()
        await stage.http.aclose()


@pytest.fixture
async def stage(make: Callable[..., Any]) -> Stage:
    made: Stage = await make()
    return made


def problem(response: httpx.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == response.status_code
    return body


async def test_a_request_goes_to_every_partition_under_the_pseudonym(stage: Stage) -> None:
    response = await stage.erase()
    assert response.status_code == 202
    records = stage.log.records("erasure.requests")
    assert [record.partition for record in records] == list(range(P))
    assert {record.key for record in records} == {SUBJECT.encode()}
    assert not any(b"alice" in (record.value or b"") for record in records)
    now = from_ms(stage.clock.now_ms())
    deadline = now + timedelta(days=ERASED_WITHIN_DAYS)
    assert {(one.request_id, one.subject, one.requested_at, one.deadline) for one in stage.requests()} == {
        ("q1", SUBJECT, now, deadline)
    }
    told = response.json()
    assert (told["request_id"], told["subject"], told["status"]) == ("q1", SUBJECT, "requested")
    assert datetime.fromisoformat(told["deadline"]) == deadline


async def test_without_a_token_the_door_erases_nobody_and_names_the_setting(make: Callable[..., Any]) -> None:
    stage = await make(token=None)
    for response in (await stage.erase(), await stage.follow()):
        assert response.status_code == 403
        assert "LOOPWRIGHT_FEEDBACK_ERASURE_TOKEN" in problem(response)["detail"]
    assert stage.requests() == []


@pytest.mark.parametrize("token", [None, "another token of some length", TOKEN[:-1], "é"])
async def test_without_the_right_token_nothing_is_erased_and_nothing_told(
    stage: Stage, token: str | None
) -> None:
    header = {} if token is None else {b"Authorization": f"Bearer {token}".encode()}
    asked = await stage.http.post("/v1/erasure", json=ALICE, headers=header)
    followed = await stage.http.get("/v1/erasure/q1", headers=header)
    for response in (asked, followed):
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert TOKEN not in problem(response)["detail"]
    assert stage.requests() == []


async def test_the_token_is_asked_for_before_anything_is_read(stage: Stage) -> None:
    response = await stage.http.post("/v1/erasure", content=b"{not JSON")
    assert response.status_code == 401


def test_a_sample_token_is_refused_under_the_name_of_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPWRIGHT_FEEDBACK_ERASURE_TOKEN", "secret")
    with pytest.raises(ValidationError, match="LOOPWRIGHT_FEEDBACK_ERASURE_TOKEN is a sample"):
        FeedbackSettings()


async def test_the_same_request_again_is_answered_the_same_and_written_once(stage: Stage) -> None:
    first = await stage.erase()
    stage.clock.advance(3600)
    again = await stage.erase()
    assert (again.status_code, again.json()) == (202, first.json())
    assert len(stage.requests()) == P


async def test_an_idempotency_key_is_the_request_id(stage: Stage) -> None:
    body = {"user_id": "alice"}
    first = await stage.erase(body, **{"Idempotency-Key": "k1"})
    again = await stage.erase(body, **{"Idempotency-Key": "k1"})
    assert (first.json()["request_id"], again.json()) == ("k1", first.json())
    assert (await stage.erase(ALICE, **{"Idempotency-Key": "k1"})).status_code == 422
    assert len(stage.requests()) == P


async def test_without_an_id_one_is_issued(stage: Stage) -> None:
    one, other = [await stage.erase({"user_id": "alice"}) for _ in range(2)]
    assert one.json()["request_id"] != other.json()["request_id"]


async def test_a_retry_at_another_door_finds_the_first_in_the_log(stage: Stage) -> None:
    first = await stage.erase()
    # Its follower has not read the request yet.
    answer = stage.eraser(ErasureStatusView(), identity="door-2").take(
        b'{"user_id": "alice", "request_id": "q1"}', None, None
    )
    assert answer.status_code == 202
    assert first.status_code == 202
    assert len(stage.requests()) == P


@pytest.mark.parametrize("arrives", [False, True])
async def test_after_an_answer_that_was_lost_the_log_decides_whether_it_is_written_again(
    make: Callable[..., Any], arrives: bool
) -> None:
    stage = await make(failing=BrokerUnavailable("the connection broke"), arrives=arrives)
    lost = await stage.erase()
    assert lost.status_code == 503
    assert "under the request_id q1" in problem(lost)["detail"]
    stage.failing = None
    assert (await stage.erase()).status_code == 202
    assert len(stage.requests()) == P


async def test_another_user_under_the_same_request_id_is_a_conflict(stage: Stage) -> None:
    await stage.erase()
    for other in ({"user_id": "bob"}, {"line": "support"}):
        refused = await stage.erase(ALICE | other)
        assert refused.status_code == 409
        assert "new request_id" in problem(refused)["detail"]
    assert {one.subject for one in stage.requests()} == {SUBJECT}


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
        ({"user_id": "a", "else": 1}, 422),
        ({"user_id": "a", "request_id": "x" * 9_000}, 413),
    ],
)
async def test_what_cannot_be_meant_is_refused(stage: Stage, body: dict[str, Any], status: int) -> None:
    response = await stage.erase(body)
    assert response.status_code == status
    problem(response)
    assert stage.requests() == []


async def test_erasures_are_bounded_in_rate(stage: Stage) -> None:
    codes = [(await stage.erase({"user_id": f"u{n}"})).status_code for n in range(4)]
    assert codes == [202, 202, 202, 429]
    stage.clock.advance(61)
    assert (await stage.erase({"user_id": "u3"})).status_code == 202


async def test_an_erasure_is_followed_from_the_request_to_the_trainer(stage: Stage) -> None:
    assert (await stage.follow()).status_code == 404
    await stage.erase()

    async def told() -> dict[str, Any]:
        body: dict[str, Any] = (await stage.follow()).json()
        return body

    assert (await told())["status"] == "requested"
    stage.report(partition=0, responses=2, signals=3, batches={"assistant-0-1": 1})
    stage.report(partition=0, responses=2, signals=3, batches={"assistant-0-1": 1})
    part = await told()
    assert (part["status"], part["partitions_done"], part["partitions"]) == ("in_processor", 1, P)
    for partition in (1, 2):
        stage.report(partition=partition, signals=1)
    part = await told()
    assert (part["status"], part["responses"], part["signals"], part["batches"]) == ("in_trainer", 2, 5, 1)
    stage.report(service="trainer", line="support", partitions=None)
    assert (await told())["status"] == "in_trainer", "another line's trainer is not this one's"
    stage.report(service="trainer", partitions=None, versions=(VERSION,), snapshots=2)
    done = await told()
    assert (done["status"], done["versions"], done["snapshots"]) == ("done", [VERSION], 2)
    assert VERSION in done["detail"]
    assert done["completed_at"]


async def test_it_is_done_when_every_line_that_had_something_of_the_user_has_followed(stage: Stage) -> None:
    await stage.erase()
    for partition in range(P):
        stage.report(partition=partition, batches={f"support-{partition}-1": 1})
    stage.report(service="trainer", partitions=None)
    waiting = (await stage.follow()).json()
    assert (waiting["status"], "trainer of support" in waiting["detail"]) == ("in_trainer", True)
    stage.report(service="trainer", line="support", partitions=None)
    assert (await stage.follow()).json()["status"] == "done"


async def test_an_erasure_past_its_deadline_says_so_until_it_is_done(stage: Stage) -> None:
    await stage.erase()
    stage.clock.advance(ERASED_WITHIN_DAYS * 86_400 + 1)
    late = (await stage.follow()).json()
    assert late["overdue"]
    assert "deadline has passed" in late["detail"]
    for partition in range(P):
        stage.report(partition=partition)
    stage.report(service="trainer", partitions=None)
    assert not (await stage.follow()).json()["overdue"]


def test_reports_alone_tell_of_an_erasure_whose_request_has_left_the_log() -> None:
    stage = Stage()
    for partition in range(P):
        stage.report(partition=partition)
    stage.report(service="trainer", partitions=None)
    found = stage.erasures.find("q1", datetime(2026, 3, 1, tzinfo=UTC))
    assert found is not None
    assert (found.status, found.deadline, found.subject) == ("done", None, SUBJECT)


def test_an_unreadable_record_hides_no_other() -> None:
    stage = Stage()
    stage.log.append(Output("erasure.reports", b"k", b"garbage"), Output("erasure.requests", b"k", None))
    stage.erasures.apply([*stage.log.records("erasure.reports"), *stage.log.records("erasure.requests")])
    stage.report(partition=0)
    assert stage.erasures.find("q1", datetime(2026, 3, 1, tzinfo=UTC)) is not None


async def test_a_request_id_may_hold_slashes_and_signs(stage: Stage) -> None:
    await stage.erase(ALICE | {"request_id": "a/b?c%"})
    assert (await stage.follow("a%2Fb%3Fc%25")).json()["request_id"] == "a/b?c%"
