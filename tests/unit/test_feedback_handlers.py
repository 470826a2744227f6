"""The feedback API over a log and a cache in memory: what it answers, and when."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from loopwright.wire import path_of
from services.feedback.api.routes import build_app
from services.feedback.handlers import FeedbackHandlers
from services.feedback.receipt_index import INDEXED_TOPICS
from services.feedback.receipt_lookup import ReceiptLookup
from services.feedback.settings import FeedbackSettings
from services.feedback.views import ErasureStatusView, KnownLines, VersionsView
from shared.adapters.async_publisher import AsyncPublisher
from shared.adapters.clock import ManualClock
from shared.adapters.in_memory import (
    InMemoryAsyncCache,
    InMemoryCache,
    InMemoryLog,
    InMemoryLogReader,
    InMemoryPublisher,
)
from shared.adapters.topic_follower import TopicFollower
from shared.errors import BrokerUnavailable, Overloaded
from shared.events import (
    FEEDBACK,
    ChatResponse,
    ErasureRequest,
    Outcome,
    OutcomeKind,
    RefusalReason,
    parse_union,
)
from shared.limits import MAX_RESPONSE_BYTES
from shared.pseudonym import Pseudonymiser
from shared.records import Output
from shared.telemetry import Readiness
from shared.versions import ModelVersion, VersionRef
from tests.feedback_factories import receipt_lookup

P = 6
KEY = b"a key that is long enough"
THUMBS = {"event_id": "e1", "response_id": "chatcmpl-1", "user_id": "alice", "kind": "thumbs", "value": "up"}


@dataclass
class FeedbackApi:
    log: InMemoryLog
    cache: InMemoryCache
    clock: ManualClock
    publisher: InMemoryPublisher
    receipts: ReceiptLookup
    erasures: ErasureStatusView
    http: httpx.AsyncClient

    async def send(self, body: dict[str, Any], **headers: str) -> httpx.Response:
        return await self.http.post("/v1/feedback", json=body, headers=headers)

    def write_outcome(
        self, kind: OutcomeKind, event_id: str | None = "e1", response_id: str = "chatcmpl-1", **fields: Any
    ) -> None:
        """Write an outcome to the partition of its event, as the processor does."""
        outcome = Outcome(
            line="assistant",
            response_id=response_id,
            event_id=event_id,
            outcome=kind,
            decided_at=datetime(2026, 1, 1, tzinfo=UTC),
            **fields,
        )
        self.log.append(Output("feedback.outcomes", response_id.encode(), outcome.to_json()))


@pytest.fixture
async def api() -> AsyncIterator[FeedbackApi]:
    clock = ManualClock()
    log, cache = InMemoryLog(P, clock), InMemoryCache(clock)
    publisher, versions = InMemoryPublisher(log, "feedback"), VersionsView()
    receipts, erasures = receipt_lookup(log, P), ErasureStatusView()
    handlers = FeedbackHandlers(
        settings=FeedbackSettings(
            user_per_minute=3,
            responses_per_minute=4,
            pseudonym_key=SecretStr(KEY.decode()),
            ack_timeout_s=0.2,
        ),
        publisher=AsyncPublisher(publisher),
        cache=InMemoryAsyncCache(cache),
        clock=clock,
        pseudonymiser=Pseudonymiser(KEY),
        lines=KnownLines(frozenset({"assistant"}), versions, lambda: follower.caught_up),
        versions=versions,
        erasures=erasures,
        receipts=receipts,
    )
    topics = ["model.versions", "model.rollout"]
    readiness = Readiness("versions")
    follower = TopicFollower(
        "versions", lambda: InMemoryLogReader(log, topics), versions.apply, readiness, lambda: None
    )
    app = build_app(handlers, follower, readiness)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://feedback") as http:
        follower.start()
        receipts.follower.start()
        while not (follower.caught_up and receipts.follower.caught_up):
            await http.get("/livez")
        yield FeedbackApi(log, cache, clock, publisher, receipts, erasures, http)
        follower.stop()
        receipts.stop()


def problem(response: httpx.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == response.status_code
    assert {"type", "title", "detail", "code"} <= set(body)
    return body


async def test_accepted_event_is_in_the_log_under_a_pseudonym(api: FeedbackApi) -> None:
    response = await api.send(THUMBS)
    assert response.status_code == 202
    assert response.json() == {"event_id": "e1", "status": "accepted", "actionable": True, "hint": None}
    (record,) = api.log.records("feedback.events")
    assert record.key == b"chatcmpl-1"
    assert b"alice" not in (record.value or b"")
    event = parse_union(FEEDBACK, record.value)
    assert (event.event_id, event.user_id) == ("e1", Pseudonymiser(KEY).of("alice"))
    headers = dict(record.headers)
    assert headers["ce_type"] == b"loopwright.feedback.thumbs"
    assert headers["ce_id"] == b"chatcmpl-1/e1"


async def test_vague_comment_is_accepted_with_a_hint(api: FeedbackApi) -> None:
    body = (await api.send(THUMBS | {"kind": "comment", "value": "bad answer"})).json()
    assert (body["status"], body["actionable"]) == ("accepted", False)
    assert "say what" in body["hint"]


async def test_valid_traceparent_is_kept_and_malformed_one_replaced(api: FeedbackApi) -> None:
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    await api.send(THUMBS, traceparent=trace)
    await api.send(THUMBS | {"event_id": "e2"}, traceparent=f"00-{'A' * 32}-junk")
    first, second = (dict(r.headers)["traceparent"] for r in api.log.records("feedback.events"))
    assert first == trace.encode()
    assert len(second) == len(first)
    assert second != first


async def test_year_one_is_rejected_and_never_reaches_the_log(api: FeedbackApi) -> None:
    refused = await api.send(THUMBS | {"occurred_at": "0001-01-01T00:00:00+14:00"})
    assert refused.status_code == 422
    assert "2000-01-01T00:00:00Z" in problem(refused)["detail"]
    assert api.log.records("feedback.events") == []


async def test_repeated_event_is_a_duplicate_and_not_written_again(api: FeedbackApi) -> None:
    await api.send(THUMBS)
    again = await api.send(THUMBS)
    assert (again.status_code, again.json()["status"]) == (200, "duplicate")
    assert len(api.log.records("feedback.events")) == 1


async def test_event_is_new_again_after_its_user_was_erased(api: FeedbackApi) -> None:
    await api.send(THUMBS)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    for subject in ("bob", "alice"):
        request = ErasureRequest(
            line="assistant",
            request_id=subject,
            subject=Pseudonymiser(KEY).of(subject),
            requested_at=now,
            deadline=now,
        )
        sent = [(await api.send(THUMBS)).status_code]
        for _ in range(P):  # each partition has a copy
            api.erasures.add_request(request)
        sent += [(await api.send(THUMBS)).status_code]
        api.clock.wait(120)
        assert sent == ([200, 200] if subject == "bob" else [200, 202])
    assert (await api.send(THUMBS)).status_code == 200
    assert len(api.log.records("feedback.events")) == 2


async def test_other_content_under_the_same_id_is_a_conflict(api: FeedbackApi) -> None:
    await api.send(THUMBS)
    other = await api.send(THUMBS | {"value": "down"})
    assert other.status_code == 409
    assert "new event_id" in problem(other)["detail"]
    assert len(api.log.records("feedback.events")) == 1


async def test_same_event_id_on_another_response_is_another_event(api: FeedbackApi) -> None:
    await api.send(THUMBS)
    assert (await api.send(THUMBS | {"response_id": "chatcmpl-2"})).status_code == 202


async def test_idempotency_key_is_the_event_id(api: FeedbackApi) -> None:
    body = {key: value for key, value in THUMBS.items() if key != "event_id"}
    first = await api.send(body, **{"Idempotency-Key": "k1"})
    again = await api.send(body, **{"Idempotency-Key": "k1"})
    assert (first.json()["event_id"], again.status_code) == ("k1", 200)


async def test_event_without_id_gets_one_and_a_note_about_retries(api: FeedbackApi) -> None:
    body = {key: value for key, value in THUMBS.items() if key != "event_id"}
    first, again = await api.send(body), await api.send(body)
    assert "not be recognised" in first.json()["note"]
    assert first.json()["event_id"] != again.json()["event_id"]
    assert (first.json()["event_id"][14], again.status_code) == ("7", 202)


@pytest.mark.parametrize("failure", [BrokerUnavailable("timed out"), Overloaded("the queue is full")])
async def test_event_without_acknowledgement_is_not_accepted(api: FeedbackApi, failure: Exception) -> None:
    assert isinstance(failure, BrokerUnavailable | Overloaded)
    api.publisher.failure = failure
    response = await api.send(THUMBS)
    assert response.status_code == 503
    assert response.headers["retry-after"]
    assert "send it again under the same id" in problem(response)["detail"]


async def test_retry_after_a_lost_acknowledgement_is_written_again(
    api: FeedbackApi,
) -> None:
    api.publisher.failure = BrokerUnavailable("the connection broke")
    assert (await api.send(THUMBS)).status_code == 503
    api.publisher.failure = None
    # If the duplicate key were set before the write, this would be 200 and the event would be lost.
    assert (await api.send(THUMBS)).status_code == 202
    assert len(api.log.records("feedback.events")) == 1


async def test_feedback_is_accepted_without_redis(api: FeedbackApi) -> None:
    api.cache.away = True
    codes = [(await api.send(THUMBS)).status_code for _ in range(5)]
    assert codes == [202] * 5, "the processor detects the repetitions"


async def test_rate_limit_applies_per_user(api: FeedbackApi) -> None:
    codes = [(await api.send(THUMBS | {"event_id": f"e{n}"})).status_code for n in range(4)]
    assert codes == [202, 202, 202, 429]
    refused = await api.send(THUMBS | {"event_id": "e9"})
    assert 1 <= int(refused.headers["retry-after"]) <= 61
    assert "3 events per minute" in problem(refused)["detail"]
    assert (await api.send(THUMBS | {"event_id": "e8", "user_id": "bob"})).status_code == 202
    api.clock.advance(int(refused.headers["retry-after"]))
    assert (await api.send(THUMBS | {"event_id": "e9"})).status_code == 202


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
async def test_invalid_request_gets_a_problem_document(
    api: FeedbackApi, raw: bytes, media: str, status: int
) -> None:
    response = await api.http.post(
        "/v1/feedback", content=raw, headers={"content-type": media} if media else {}
    )
    assert response.status_code == status
    problem(response)
    assert api.log.records("feedback.events") == []


async def test_accepted_response_is_in_the_log(api: FeedbackApi) -> None:
    body = {
        "response_id": "r1",
        "version": "gpt-x",
        "messages": [{"role": "user", "content": "How hot?"}],
        "choices": [{"index": 0, "text": "Very."}],
        "user_id": "alice",
    }
    response = await api.http.post("/v1/responses", json=body)
    assert (response.status_code, response.json()) == (202, {"response_id": "r1", "status": "accepted"})
    (record,) = api.log.records("chat.responses")
    assert record.key == b"r1"
    assert ChatResponse.from_json(record.value).user_id == Pseudonymiser(KEY).of("alice")
    api.publisher.failure = BrokerUnavailable("away")
    assert (await api.http.post("/v1/responses", json=body)).status_code == 503
    assert (await api.http.post("/v1/responses", json=body | {"choices": []})).status_code == 422


# --- receipts ---------------------------------------------------------------------------------------------------


async def receipt(api: FeedbackApi, event_id: str = "e1", response_id: str = "chatcmpl-1") -> httpx.Response:
    """Return the receipt once the index has read everything that is in the log."""
    for topic in INDEXED_TOPICS:
        for partition in range(P):
            position = (topic, partition)
            assert api.receipts.index.wait_for(position, api.log.end(position), 10)
    return await api.http.get(f"/v1/feedback/{response_id}/{event_id}")


async def test_receipt_is_pending_until_there_is_an_outcome(api: FeedbackApi) -> None:
    await api.send(THUMBS)
    assert (await receipt(api)).json()["outcome"] == "pending"
    api.write_outcome(OutcomeKind.BATCHED, batch_id="assistant-1-1", revision=1)
    body = (await receipt(api)).json()
    assert (body["outcome"], body["stage"], body["batch_id"]) == ("batched", "batched", "assistant-1-1")


@pytest.mark.parametrize("lost", ["wiped", "away"])
async def test_receipts_are_the_same_without_redis(api: FeedbackApi, lost: str) -> None:
    await api.send(THUMBS)
    await api.send(THUMBS | {"event_id": "e2"})
    api.write_outcome(OutcomeKind.BATCHED, batch_id="assistant-1-1")
    before = [(await receipt(api, e)).json() for e in ("e1", "e2")]
    if lost == "wiped":
        api.cache.wipe()
    else:
        api.cache.away = True
    assert [(await receipt(api, e)).json() for e in ("e1", "e2")] == before
    assert [body["outcome"] for body in before] == ["batched", "pending"]


async def test_unknown_event_is_not_found(api: FeedbackApi) -> None:
    await api.send(THUMBS)
    response = await receipt(api, "e404")
    assert response.status_code == 404
    assert "e404" in problem(response)["detail"]


async def test_outcome_of_a_repetition_does_not_hide_that_of_the_event(api: FeedbackApi) -> None:
    api.cache.away = True
    await api.send(THUMBS)
    await api.send(THUMBS)
    api.write_outcome(OutcomeKind.DUPLICATE)
    assert (await receipt(api)).json()["outcome"] == "pending"
    api.write_outcome(OutcomeKind.BATCHED, batch_id="assistant-1-1")
    api.write_outcome(OutcomeKind.LATE)
    assert (await receipt(api)).json()["outcome"] == "batched"


async def test_refused_conflict_and_refused_response_hide_no_outcome(api: FeedbackApi) -> None:
    api.cache.away = True
    await api.send(THUMBS)
    await api.send(THUMBS | {"value": "down"})
    api.write_outcome(OutcomeKind.REFUSED, reason=RefusalReason.CONFLICT)
    api.write_outcome(OutcomeKind.REFUSED, event_id=None, reason=RefusalReason.CONFLICT)
    assert (await receipt(api)).json()["outcome"] == "pending"


async def test_event_is_a_duplicate_if_every_arrival_is(api: FeedbackApi) -> None:
    await api.send(THUMBS | {"kind": "retract", "value": "e0"})
    api.write_outcome(OutcomeKind.DUPLICATE, detail="already taken back")
    assert (await receipt(api)).json()["outcome"] == "duplicate"


async def test_dead_letter_is_an_outcome_unless_it_is_a_conflict(api: FeedbackApi) -> None:
    await api.send(THUMBS)
    (sent,) = api.log.records("feedback.events")
    other = (sent.value or b"").replace(b'"up"', b'"down"')
    where = (("dl_topic", b"feedback.events"), ("dl_message", b"came again with other content"))
    api.log.append(Output("dead.letters", sent.key, other, (*where, ("dl_class", b"conflict"))))
    assert (await receipt(api)).json()["outcome"] == "pending"
    why = (("dl_topic", b"feedback.events"), ("dl_class", b"rejected"), ("dl_message", b"not this user's"))
    api.log.append(Output("dead.letters", sent.key, sent.value, why))
    body = (await receipt(api)).json()
    assert body["outcome"] == "dead"
    assert "not this user's" in body["detail"]


async def test_ids_may_contain_slashes_and_punctuation(api: FeedbackApi) -> None:
    await api.send(THUMBS | {"response_id": "a/b", "event_id": "c?d%/e"})
    response = await receipt(api, "c%3Fd%25%2Fe", "a%2Fb")
    assert (response.status_code, response.json()["event_id"]) == (200, "c?d%/e")
    assert (await api.http.get("/v1/feedback/a/b/c")).status_code == 422


async def test_unreadable_record_does_not_hide_a_receipt(api: FeedbackApi) -> None:
    await api.send(THUMBS)
    api.log.append(Output("feedback.outcomes", b"chatcmpl-1", b"garbage"))
    api.log.append(Output("feedback.events", b"chatcmpl-1", b"garbage"))
    api.write_outcome(OutcomeKind.UNMATCHED)
    assert (await receipt(api)).json()["outcome"] == "unmatched"


async def test_readiness_metrics_and_schema_are_served(api: FeedbackApi) -> None:
    assert (await api.http.get("/readyz")).json() == {"ready": True, "checks": {"versions": "ok"}}
    assert "loopwright_feedback_accepted_total" in (await api.http.get("/metrics")).text
    assert (await api.http.get("/openapi.json")).status_code == 200


RESPONSE: dict[str, Any] = {
    "response_id": "r1",
    "version": "gpt-x",
    "messages": [{"role": "user", "content": "hi"}],
    "choices": [{"index": 0, "text": "hello"}],
}


async def test_response_that_no_batch_can_hold_is_413_and_says_what_to_do(api: FeedbackApi) -> None:
    body = RESPONSE | {"messages": [{"role": "user", "content": "x" * 30_000}] * 13}
    response = await api.http.post("/v1/responses", json=body)
    assert response.status_code == 413
    assert problem(response)["code"] == "oversized"
    assert str(MAX_RESPONSE_BYTES) in problem(response)["detail"]
    assert "Shorten" in problem(response)["detail"]
    assert api.log.records("chat.responses") == []


@pytest.mark.parametrize("who", [{"user_id": "alice"}, {}])
async def test_responses_are_limited_per_user_or_else_per_line(api: FeedbackApi, who: dict[str, str]) -> None:
    for n in range(4):
        response = await api.http.post("/v1/responses", json=RESPONSE | who | {"response_id": f"r{n}"})
        assert response.status_code == 202
    refused = await api.http.post("/v1/responses", json=RESPONSE | who)
    assert refused.status_code == 429
    assert problem(refused)["code"] == "overloaded"
    assert int(refused.headers["Retry-After"]) > 0
    other = await api.http.post("/v1/responses", json=RESPONSE | {"user_id": "bob"})
    assert other.status_code == 202, "another user's limit is another one"
    assert (await api.send(THUMBS)).status_code == 202, "feedback has a limit of its own"


async def test_unknown_line_is_422_that_names_the_known_ones(api: FeedbackApi) -> None:
    for path, body in (("/v1/feedback", THUMBS), ("/v1/responses", RESPONSE)):
        response = await api.http.post(path, json=body | {"line": "made-up"})
        assert response.status_code == 422
        assert problem(response)["code"] == "unknown_line"
        assert "assistant" in problem(response)["detail"]
    assert api.log.records("feedback.events") == api.log.records("chat.responses") == []


async def test_line_with_a_version_is_known(api: FeedbackApi) -> None:
    ref = VersionRef(version="support@base-00000000", kind="base", digest="0" * 64)
    version = ModelVersion(
        line="support",
        ref=ref,
        base=ref.version,
        base_model="b",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    api.log.append(Output("model.versions", ref.version.encode(), version.to_json()))
    async with asyncio.timeout(10):
        while (await api.send(THUMBS | {"line": "support"})).status_code != 202:
            pass


def test_unknown_line_is_unavailable_until_the_versions_are_read() -> None:
    lines = KnownLines(frozenset({"assistant"}), VersionsView(), lambda: False)
    assert lines.check("assistant") == "assistant"
    with pytest.raises(BrokerUnavailable):
        lines.check("support")


async def test_receipt_of_impossible_ids_is_422(api: FeedbackApi) -> None:
    response = await api.http.get("/v1/feedback/" + "r" * 129 + "/e1")
    assert response.status_code == 422
    assert "128" in problem(response)["detail"]


async def test_oversized_headers_are_431(api: FeedbackApi) -> None:
    response = await api.send(THUMBS, traceparent="x" * 17_000)
    assert response.status_code == 431
    assert problem(response)["code"] == "headers_too_large"
    assert api.log.records("feedback.events") == []


HOSTILE = [
    b"",
    b" ",
    b"\x00",
    b"a b",
    b"\xff\xfe",
    "é".encode(),
    b"x" * 129,
    b"x" * 10_000,
    b"00-" + b"0" * 52,
    b"%",
    b"[]",
]


@pytest.mark.parametrize("header", ["Idempotency-Key", "traceparent", "Content-Type", "Host"])
@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
async def test_hostile_header_never_fails_or_reaches_the_log(
    api: FeedbackApi, header: str, value: bytes
) -> None:
    body = json.dumps({name: THUMBS[name] for name in THUMBS if name != "event_id"}).encode()
    headers = [(b"content-type", b"application/json")] if header != "Content-Type" else []
    response = await api.http.post("/v1/feedback", content=body, headers=[*headers, (header.encode(), value)])
    assert response.status_code in (202, 415, 422)
    for record in api.log.records("feedback.events"):
        event = parse_union(FEEDBACK, record.value)
        assert len(event.event_id) <= 128
        assert len(dict(record.headers)["traceparent"]) == 55


@pytest.mark.parametrize("part", [b"%00", b"%FF", b"%2F" * 200, b"a%20b", b"%E2%80%A8"], ids=range(5))
async def test_hostile_id_in_a_path_is_422(api: FeedbackApi, part: bytes) -> None:
    for path in (b"/v1/feedback/" + part + b"/e1", b"/v1/feedback/r1/" + part):
        assert (await api.http.get(path.decode())).status_code == 422


@pytest.mark.parametrize("an_id", ["/x", "x/", "//", "a/b", "?q=1", "#f", "%2F", "a.", "...", ".a", "~!'()*"])
async def test_every_valid_id_has_a_receipt(api: FeedbackApi, an_id: str) -> None:
    assert (await api.send(THUMBS | {"response_id": an_id, "event_id": an_id})).status_code == 202
    receipt = await api.http.get(path_of("v1", "feedback", an_id, an_id))
    assert receipt.status_code == 200
    assert (receipt.json()["response_id"], receipt.json()["stage"]) == (an_id, "pending")
