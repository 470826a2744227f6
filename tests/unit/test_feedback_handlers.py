"""The feedback door over a log and a cache in memory: what it answers, and when."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from services.feedback.api import build_app
from services.feedback.handlers import FeedbackHandlers
from services.feedback.outcome_lookup import OutcomeLookup
from services.feedback.settings import FeedbackSettings
from services.feedback.views import OutcomeIndex, VersionsView
from shared.adapters.clock import ManualClock
from shared.adapters.in_memory import InMemoryCache, InMemoryLog, InMemoryLogReader, InMemoryPublisher
from shared.adapters.topic_follower import TopicFollower
from shared.errors import BrokerUnavailable, Overloaded
from shared.events import FEEDBACK, ChatResponse, Outcome, OutcomeKind, parse_union
from shared.pseudonym import Pseudonymiser
from shared.records import Output
from shared.telemetry import Readiness

P = 6
KEY = b"a key that is long enough"
THUMBS = {"event_id": "e1", "response_id": "chatcmpl-1", "user_id": "alice", "kind": "thumbs", "value": "up"}


@dataclass
class Stage:
    log: InMemoryLog
    cache: InMemoryCache
    clock: ManualClock
    publisher: InMemoryPublisher
    door: FeedbackHandlers
    http: httpx.AsyncClient

    async def send(self, said: dict[str, Any], **headers: str) -> httpx.Response:
        return await self.http.post("/v1/feedback", json=said, headers=headers)

    def decide(
        self, kind: OutcomeKind, event_id: str = "e1", response_id: str = "chatcmpl-1", **more: Any
    ) -> None:
        """Writes an outcome beside its input, as the processor does."""
        outcome = Outcome(
            line="assistant",
            response_id=response_id,
            event_id=event_id,
            outcome=kind,
            decided_at=datetime(2026, 1, 1, tzinfo=UTC),
            **more,
        )
        self.log.append(Output("feedback.outcomes", response_id.encode(), outcome.to_json()))


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    clock = ManualClock()
    log, cache = InMemoryLog(P, clock), InMemoryCache(clock)
    publisher, standing = InMemoryPublisher(log, "feedback"), VersionsView()
    index = OutcomeIndex(cache, ttl_s=1000, pending_ttl_s=5)
    door = FeedbackHandlers(
        settings=FeedbackSettings(
            user_per_minute=3, pseudonym_key=SecretStr(KEY.decode()), ack_timeout_s=0.2
        ),
        publisher=publisher,
        cache=cache,
        clock=clock,
        pseudonyms=Pseudonymiser(KEY),
        standing=standing,
        index=index,
        history=OutcomeLookup(
            lambda topic, partition: InMemoryLogReader(log, [topic], partitions=[partition]),
            partitions=P,
            timeout_s=5,
            slots=2,
        ),
    )
    topics = ["model.versions", "model.rollout"]
    ready = Readiness("versions")
    follower = TopicFollower(
        "versions", lambda: InMemoryLogReader(log, topics), standing.apply, ready, lambda: None
    )
    app = build_app(door, [follower], ready)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://feedback") as http:
            while not follower.caught_up:
                await http.get("/livez")
            yield Stage(log, cache, clock, publisher, door, http)


def problem(response: httpx.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == response.status_code
    assert {"type", "title", "detail", "code"} <= set(body)
    return body


async def test_what_was_accepted_is_in_the_log_under_a_pseudonym(stage: Stage) -> None:
    response = await stage.send(THUMBS)
    assert response.status_code == 202
    assert response.json() == {"event_id": "e1", "status": "accepted", "actionable": True, "hint": None}
    (record,) = stage.log.records("feedback.events")
    assert record.key == b"chatcmpl-1"
    assert b"alice" not in (record.value or b"")
    event = parse_union(FEEDBACK, record.value)
    assert (event.event_id, event.user_id) == ("e1", Pseudonymiser(KEY).of("alice"))
    headers = dict(record.headers)
    assert headers["ce_type"] == b"loopwright.feedback.thumbs"
    assert headers["ce_id"] == b"chatcmpl-1/e1"


async def test_a_vague_comment_is_accepted_with_a_hint(stage: Stage) -> None:
    body = (await stage.send(THUMBS | {"kind": "comment", "value": "bad answer"})).json()
    assert (body["status"], body["actionable"]) == ("accepted", False)
    assert "say what" in body["hint"]


async def test_the_callers_trace_goes_on_and_a_broken_one_is_replaced(stage: Stage) -> None:
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    await stage.send(THUMBS, traceparent=trace)
    await stage.send(THUMBS | {"event_id": "e2"}, traceparent=f"00-{'A' * 32}-junk")
    first, second = (dict(r.headers)["traceparent"] for r in stage.log.records("feedback.events"))
    assert first == trace.encode()
    assert len(second) == len(first)
    assert second != first


async def test_a_year_one_time_is_refused_and_never_reaches_the_log(stage: Stage) -> None:
    refused = await stage.send(THUMBS | {"occurred_at": "0001-01-01T00:00:00+14:00"})
    assert refused.status_code == 422
    assert "2000-01-01T00:00:00Z" in problem(refused)["detail"]
    assert stage.log.records("feedback.events") == []


async def test_the_same_again_is_a_duplicate_and_is_not_written_again(stage: Stage) -> None:
    await stage.send(THUMBS)
    again = await stage.send(THUMBS)
    assert (again.status_code, again.json()["status"]) == (200, "duplicate")
    assert len(stage.log.records("feedback.events")) == 1


async def test_other_content_under_the_same_id_is_a_conflict(stage: Stage) -> None:
    await stage.send(THUMBS)
    other = await stage.send(THUMBS | {"value": "down"})
    assert other.status_code == 409
    assert "new event_id" in problem(other)["detail"]
    assert len(stage.log.records("feedback.events")) == 1


async def test_the_same_event_id_on_another_response_is_another_event(stage: Stage) -> None:
    await stage.send(THUMBS)
    assert (await stage.send(THUMBS | {"response_id": "chatcmpl-2"})).status_code == 202


async def test_an_idempotency_key_is_the_event_id(stage: Stage) -> None:
    without = {key: value for key, value in THUMBS.items() if key != "event_id"}
    first = await stage.send(without, **{"Idempotency-Key": "k1"})
    again = await stage.send(without, **{"Idempotency-Key": "k1"})
    assert (first.json()["event_id"], again.status_code) == ("k1", 200)


async def test_without_an_id_one_is_issued_and_the_answer_says_what_that_means(stage: Stage) -> None:
    without = {key: value for key, value in THUMBS.items() if key != "event_id"}
    first, again = await stage.send(without), await stage.send(without)
    assert "not recognised" in first.json()["note"]
    assert first.json()["event_id"] != again.json()["event_id"]
    assert (first.json()["event_id"][14], again.status_code) == ("7", 202)


@pytest.mark.parametrize("failure", [BrokerUnavailable("timed out"), Overloaded("the queue is full")])
async def test_without_an_acknowledgement_it_is_not_accepted(stage: Stage, failure: Exception) -> None:
    assert isinstance(failure, BrokerUnavailable | Overloaded)
    stage.publisher.failure = failure
    response = await stage.send(THUMBS)
    assert response.status_code == 503
    assert response.headers["retry-after"]
    assert "send it again under the same id" in problem(response)["detail"]


async def test_a_retry_after_a_lost_acknowledgement_is_written_again_and_never_turned_away(
    stage: Stage,
) -> None:
    stage.publisher.failure = BrokerUnavailable("the connection broke")
    assert (await stage.send(THUMBS)).status_code == 503
    stage.publisher.failure = None
    # A duplicate key set before the write would answer 200 here, and the event would be lost.
    assert (await stage.send(THUMBS)).status_code == 202
    assert len(stage.log.records("feedback.events")) == 1


async def test_with_redis_away_feedback_goes_on(stage: Stage) -> None:
    stage.cache.away = True
    codes = [(await stage.send(THUMBS)).status_code for _ in range(5)]
    assert codes == [202] * 5, "the processor recognises the repetitions"


async def test_one_users_flood_is_slowed_and_others_are_not(stage: Stage) -> None:
    codes = [(await stage.send(THUMBS | {"event_id": f"e{n}"})).status_code for n in range(4)]
    assert codes == [202, 202, 202, 429]
    refused = await stage.send(THUMBS | {"event_id": "e9"})
    assert 1 <= int(refused.headers["retry-after"]) <= 61
    assert "3 events a minute" in problem(refused)["detail"]
    assert (await stage.send(THUMBS | {"event_id": "e8", "user_id": "bob"})).status_code == 202
    stage.clock.advance(int(refused.headers["retry-after"]))
    assert (await stage.send(THUMBS | {"event_id": "e9"})).status_code == 202


@pytest.mark.parametrize(
    ("raw", "media", "status"),
    [
        (b"{", "application/json", 422),
        (b"[" * 5_000, "application/json", 422),
        (json.dumps(THUMBS | {"value": "sideways"}).encode(), "application/json", 422),
        (json.dumps(THUMBS).encode(), "text/plain", 415),
        (json.dumps(THUMBS).encode(), "", 415),
        (b" " * 262_145, "application/json", 413),
        (b" " * 1_100_000, "application/json", 413),
    ],
    ids=["not JSON", "deep", "bad value", "text", "no media type", "large", "huge"],
)
async def test_what_is_refused_is_told_as_a_problem(
    stage: Stage, raw: bytes, media: str, status: int
) -> None:
    response = await stage.http.post(
        "/v1/feedback", content=raw, headers={"content-type": media} if media else {}
    )
    assert response.status_code == status
    problem(response)
    assert stage.log.records("feedback.events") == []


async def test_a_response_of_an_own_model_is_in_the_log_when_answered(stage: Stage) -> None:
    said = {
        "response_id": "r1",
        "version": "gpt-x",
        "messages": [{"role": "user", "content": "How hot?"}],
        "choices": [{"index": 0, "text": "Very."}],
        "user_id": "alice",
    }
    response = await stage.http.post("/v1/responses", json=said)
    assert (response.status_code, response.json()) == (202, {"response_id": "r1", "status": "accepted"})
    (record,) = stage.log.records("chat.responses")
    assert record.key == b"r1"
    assert ChatResponse.from_json(record.value).user_id == Pseudonymiser(KEY).of("alice")
    stage.publisher.failure = BrokerUnavailable("away")
    assert (await stage.http.post("/v1/responses", json=said)).status_code == 503
    assert (await stage.http.post("/v1/responses", json=said | {"choices": []})).status_code == 422


# --- receipts ---------------------------------------------------------------------------------------------------


async def receipt(stage: Stage, event_id: str = "e1", response_id: str = "chatcmpl-1") -> httpx.Response:
    return await stage.http.get(f"/v1/feedback/{response_id}/{event_id}")


async def test_the_receipt_is_pending_until_there_is_an_outcome(stage: Stage) -> None:
    await stage.send(THUMBS)
    assert (await receipt(stage)).json()["outcome"] == "pending"
    stage.decide(OutcomeKind.TALLY_ONLY)
    stage.clock.advance(10)  # what Redis says of `pending` is believed for seconds only
    assert (await receipt(stage)).json()["outcome"] == "tally_only"


async def test_the_index_makes_an_outcome_known_at_once(stage: Stage) -> None:
    await stage.send(THUMBS)
    stage.decide(OutcomeKind.BATCHED, batch_id="assistant-1-1", revision=1)
    stage.door.index.apply(stage.log.records("feedback.outcomes"))
    body = (await receipt(stage)).json()
    assert (body["outcome"], body["stage"], body["batch_id"]) == ("batched", "batched", "assistant-1-1")


@pytest.mark.parametrize("lost", ["wiped", "away"])
async def test_without_redis_the_log_answers_the_same(stage: Stage, lost: str) -> None:
    await stage.send(THUMBS)
    await stage.send(THUMBS | {"event_id": "e2"})
    stage.decide(OutcomeKind.BATCHED, batch_id="assistant-1-1")
    stage.door.index.apply(stage.log.records("feedback.outcomes"))
    before = [(await receipt(stage, e)).json() for e in ("e1", "e2")]
    if lost == "wiped":
        stage.cache.wipe()
    else:
        stage.cache.away = True
    assert [(await receipt(stage, e)).json() for e in ("e1", "e2")] == before
    assert [body["outcome"] for body in before] == ["batched", "pending"]


async def test_an_event_that_never_came_is_not_found(stage: Stage) -> None:
    await stage.send(THUMBS)
    response = await receipt(stage, "e404")
    assert response.status_code == 404
    assert "e404" in problem(response)["detail"]


async def test_the_outcome_of_a_repetition_does_not_hide_that_of_the_event(stage: Stage) -> None:
    stage.cache.away = True
    await stage.send(THUMBS)
    await stage.send(THUMBS)
    stage.decide(OutcomeKind.DUPLICATE)
    assert (await receipt(stage)).json()["outcome"] == "pending"
    stage.decide(OutcomeKind.BATCHED, batch_id="assistant-1-1")
    stage.decide(OutcomeKind.LATE)
    assert (await receipt(stage)).json()["outcome"] == "batched"
    stage.cache.away = False
    stage.door.index.apply(stage.log.records("feedback.outcomes"))
    assert (await receipt(stage)).json()["outcome"] == "batched"


async def test_an_event_whose_every_arrival_was_a_duplicate_is_one(stage: Stage) -> None:
    await stage.send(THUMBS | {"kind": "retract", "value": "e0"})
    stage.decide(OutcomeKind.DUPLICATE, detail="already taken back")
    stage.clock.advance(10)
    assert (await receipt(stage)).json()["outcome"] == "duplicate"


async def test_a_dead_letter_is_an_outcome_unless_it_is_a_conflict(stage: Stage) -> None:
    await stage.send(THUMBS)
    (sent,) = stage.log.records("feedback.events")
    other = (sent.value or b"").replace(b'"up"', b'"down"')
    where = (("dl_topic", b"feedback.events"), ("dl_message", b"came again with other content"))
    stage.log.append(Output("dead.letters", sent.key, other, (*where, ("dl_class", b"conflict"))))
    stage.clock.advance(10)
    assert (await receipt(stage)).json()["outcome"] == "pending"
    why = (("dl_topic", b"feedback.events"), ("dl_class", b"rejected"), ("dl_message", b"not this user's"))
    stage.log.append(Output("dead.letters", sent.key, sent.value, why))
    stage.clock.advance(10)
    body = (await receipt(stage)).json()
    assert body["outcome"] == "dead"
    assert "not this user's" in body["detail"]


async def test_ids_may_hold_slashes_and_signs(stage: Stage) -> None:
    await stage.send(THUMBS | {"response_id": "a/b", "event_id": "c?d%/e"})
    response = await receipt(stage, "c%3Fd%25%2Fe", "a%2Fb")
    assert (response.status_code, response.json()["event_id"]) == (200, "c?d%/e")
    assert (await stage.http.get("/v1/feedback/a/b/c")).status_code == 422


async def test_an_unreadable_record_beside_it_does_not_hide_a_receipt(stage: Stage) -> None:
    await stage.send(THUMBS)
    stage.log.append(Output("feedback.outcomes", b"chatcmpl-1", b"garbage"))
    stage.log.append(Output("feedback.events", b"chatcmpl-1", b"garbage"))
    stage.decide(OutcomeKind.UNMATCHED)
    stage.door.index.apply(stage.log.records("feedback.outcomes"))
    assert (await receipt(stage)).json()["outcome"] == "unmatched"
    stage.cache.wipe()
    assert (await receipt(stage)).json()["outcome"] == "unmatched"


async def test_the_index_goes_on_where_it_was_and_begins_again_when_redis_was_wiped(stage: Stage) -> None:
    stage.decide(OutcomeKind.LATE)
    stage.door.index.apply(stage.log.records("feedback.outcomes"))
    again = OutcomeIndex(stage.cache, ttl_s=1000, pending_ttl_s=5)
    ((position, offset),) = again.starts().items()
    assert (position[0], offset) == ("feedback.outcomes", 1)
    stage.cache.wipe()
    assert again.starts() == {}


async def test_the_door_says_what_it_misses(stage: Stage) -> None:
    assert (await stage.http.get("/readyz")).json() == {"ready": True, "checks": {"versions": "ok"}}
    assert "loopwright_feedback_accepted_total" in (await stage.http.get("/metrics")).text
    assert (await stage.http.get("/openapi.json")).status_code == 200
