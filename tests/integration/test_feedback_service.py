"""The feedback process with a real Kafka and Redis: acknowledged requests are in the log, and receipts follow it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from fastapi import FastAPI
from pydantic import SecretStr
from tenacity import Retrying, retry_if_not_result, stop_after_delay, wait_fixed

from services.feedback.api.routes import build_app
from services.feedback.erasure_handler import ErasureHandler
from services.feedback.handlers import FeedbackHandlers
from services.feedback.settings import FeedbackSettings
from services.feedback.views import ErasureStatusView, KnownLines, VersionsView
from shared.adapters.async_publisher import AsyncPublisher
from shared.adapters.clock import SystemClock
from shared.adapters.in_memory import InMemoryAsyncCache, InMemoryCache, InMemoryLog, InMemoryLogReader
from shared.adapters.kafka import KafkaLogReader, KafkaPublisher, KafkaTransactionalPublisher
from shared.adapters.topic_admin import create_topics
from shared.adapters.topic_follower import TopicFollower
from shared.api_keys import SCOPES
from shared.errors import BrokerUnavailable
from shared.events import FEEDBACK, ErasureReport, ErasureRequest, Outcome, OutcomeKind, parse_union
from shared.kafka_connection import KafkaConnection
from shared.partitioning import partition_for
from shared.pseudonym import Pseudonymiser
from shared.records import Output, Record
from shared.serving import ServingReport
from shared.telemetry import Readiness
from shared.versions import DatasetRef, GateReport, ModelVersion, RolloutRecord, VersionRef
from tests.access import bearer, make_keys
from tests.feedback_factories import receipt_lookup
from tests.integration.service_process import Service, running

P = 6
KEY = "a key for these tests only"
NOW = datetime(2026, 3, 4, tzinfo=UTC)


@pytest.fixture(scope="module")
def own_redis(redis_url: str) -> str:
    """A Redis database that these tests wipe and no other test uses."""
    return redis_url.rsplit("/", 1)[0] + "/7"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A file of API keys, and the only key, which has all scopes."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    return path, make_keys(path, {"tests": SCOPES})["tests"]


@pytest.fixture(scope="module")
def feedback(
    kafka: str, own_redis: str, keys: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    create_topics(KafkaConnection(kafka), P)
    env = {
        "KAFKA_BOOTSTRAP_SERVERS": kafka,
        "REDIS_URL": own_redis,
        "LOOPWRIGHT_PARTITIONS": str(P),
        "LOOPWRIGHT_PSEUDONYM_KEY": KEY,
        "LOOPWRIGHT_API_KEYS": str(keys[0]),
    }
    with running("feedback", tmp_path_factory.mktemp("feedback"), env) as service:
        service.http.headers.update(bearer(keys[1]))
        yield service


def read(kafka: str, topic: str, key: str) -> list[Record]:
    """Return the topic's records under this key."""
    reader = KafkaLogReader(
        KafkaConnection(kafka), "console", [topic], partitions=[partition_for(key.encode(), P)]
    )
    records: list[Record] = []
    while not reader.at_end():
        records += [record for record in reader.poll(0.2) if record.key == key.encode()]
    reader.close()
    return records


def thumbs_body(response_id: str, **fields: Any) -> dict[str, Any]:
    defaults = {
        "event_id": "e1",
        "response_id": response_id,
        "user_id": "alice",
        "kind": "thumbs",
        "value": "up",
    }
    return defaults | fields


def is_accepted(response: httpx.Response) -> bool:
    return response.status_code == 202


def wait_for_stage(http: httpx.Client, path: str, stage: str) -> dict[str, Any]:
    """Return the receipt as soon as it is at `stage`."""

    def get() -> dict[str, Any]:
        response = http.get(path)
        assert response.status_code == 200, response.text
        body: dict[str, Any] = response.json()
        return body

    waiting = Retrying(
        stop=stop_after_delay(20),
        wait=wait_fixed(0.1),
        retry=retry_if_not_result(lambda body: body["stage"] == stage),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
    )
    receipt: dict[str, Any] = waiting(get)
    assert receipt["stage"] == stage, receipt
    return receipt


def test_accepted_event_is_in_the_log_once(feedback: Service, kafka: str, fresh: str) -> None:
    assert feedback.http.post("/v1/feedback", json=thumbs_body(fresh)).status_code == 202
    (record,) = read(kafka, "feedback.events", fresh)
    event = parse_union(FEEDBACK, record.value)
    assert (event.event_id, event.user_id) == ("e1", Pseudonymiser(KEY.encode()).of("alice"))
    assert feedback.http.post("/v1/feedback", json=thumbs_body(fresh)).json()["status"] == "duplicate"
    assert feedback.http.post("/v1/feedback", json=thumbs_body(fresh, value="down")).status_code == 409
    assert len(read(kafka, "feedback.events", fresh)) == 1


def test_receipt_follows_the_log_from_pending_to_serving(feedback: Service, kafka: str, fresh: str) -> None:
    path = f"/v1/feedback/{fresh}/e1"
    assert feedback.http.get(path).status_code == 404
    body = thumbs_body(fresh, line=fresh)
    assert feedback.http.post("/v1/feedback", json=body).json()["code"] == "unknown_line"
    base = VersionRef(version=f"{fresh}@base-00000000", kind="base", digest="0" * 64)
    base_version = ModelVersion(line=fresh, ref=base, base=base.version, base_model="b", created_at=NOW)
    announcer = KafkaPublisher(KafkaConnection(kafka), "trainer")
    announcer.publish(Output("model.versions", base.version.encode(), base_version.to_json())).result(10)
    announcer.close()
    waiting = Retrying(
        stop=stop_after_delay(20), wait=wait_fixed(0.1), retry=retry_if_not_result(is_accepted)
    )
    waiting(lambda: feedback.http.post("/v1/feedback", json=body))
    assert feedback.http.get(path).json()["stage"] == "pending"

    processor = KafkaPublisher(KafkaConnection(kafka), "processor")
    outcome = Outcome(
        line=fresh,
        response_id=fresh,
        event_id="e1",
        outcome=OutcomeKind.BATCHED,
        batch_id=f"{fresh}-3-2",
        decided_at=NOW,
    )
    processor.publish(Output("feedback.outcomes", fresh.encode(), outcome.to_json())).result(10)
    assert wait_for_stage(feedback.http, path, "batched")["batch_id"] == f"{fresh}-3-2"

    ref = VersionRef(version=f"{fresh}@v1-11111111", kind="lora", uri="file:///v1", digest="1" * 64)
    version = ModelVersion(
        line=fresh,
        ref=ref,
        number=1,
        base=base.version,
        base_model="b",
        run_id="run-1",
        dataset=DatasetRef(digest="2" * 64, examples=1, users=1, through={"3": 2}),
        gate=GateReport(verdict="passed", gated_against=base.version),
        created_at=NOW,
    )
    trainer = KafkaTransactionalPublisher(KafkaConnection(kafka), "trainer", fresh)
    trainer.publish_all([Output("model.versions", ref.version.encode(), version.to_json())])
    assert wait_for_stage(feedback.http, path, "published")["version"] == ref.version

    decided = RolloutRecord(
        line=fresh, seq=2, action="promote", stable=ref, previous=base, reason="it passed", decided_at=NOW
    )
    rollout = KafkaPublisher(KafkaConnection(kafka), "rollout")
    rollout.publish(Output("model.rollout", fresh.encode(), decided.to_json())).result(10)
    assert wait_for_stage(feedback.http, path, "ordered")["serving"] is False
    inference = KafkaPublisher(KafkaConnection(kafka), "inference")
    report = ServingReport(line=fresh, replica="one", seq=2, stable=ref.version, reported_at=NOW)
    inference.publish(Output("model.serving", report.key.encode(), report.to_json())).result(10)
    receipt = wait_for_stage(feedback.http, path, "serving")
    assert (receipt["serving"], receipt["run_id"], receipt["verdict"]) == (True, "run-1", "passed")
    for publisher in (processor, trainer, rollout, inference):
        publisher.close()


def test_wiping_redis_changes_no_receipt(feedback: Service, kafka: str, own_redis: str, fresh: str) -> None:
    for event_id in ("e1", "e2"):
        assert (
            feedback.http.post("/v1/feedback", json=thumbs_body(fresh, event_id=event_id)).status_code == 202
        )
    processor = KafkaPublisher(KafkaConnection(kafka), "processor")
    outcome = Outcome(
        line="assistant", response_id=fresh, event_id="e1", outcome=OutcomeKind.UNMATCHED, decided_at=NOW
    )
    processor.publish(Output("feedback.outcomes", fresh.encode(), outcome.to_json())).result(10)
    processor.close()
    paths = [f"/v1/feedback/{fresh}/{event_id}" for event_id in ("e1", "e2")]
    wait_for_stage(feedback.http, paths[0], "unmatched")
    before = [feedback.http.get(path).json() for path in paths]
    with redis.Redis.from_url(own_redis) as cache:
        cache.flushdb()
    assert [feedback.http.get(path).json() for path in paths] == before
    # Without its duplicate keys the service accepts a repetition; the processor detects it.
    assert feedback.http.post("/v1/feedback", json=thumbs_body(fresh)).status_code == 202


def test_response_of_an_own_model_is_in_the_log(feedback: Service, kafka: str, fresh: str) -> None:
    body = {
        "response_id": fresh,
        "version": "gpt-x",
        "messages": [{"role": "user", "content": "How hot?"}],
        "choices": [{"index": 0, "text": "Very."}],
    }
    assert feedback.http.post("/v1/responses", json=body).status_code == 202
    assert len(read(kafka, "chat.responses", fresh)) == 1


def erase(service: Service, fresh: str, request_id: str) -> httpx.Response:
    return service.http.post("/v1/erasure", json={"user_id": fresh, "request_id": request_id})


def erasure_requests(kafka: str, subject: str) -> list[tuple[int, str]]:
    """Return the sorted (partition, request_id) of the committed requests for this subject."""
    reader = KafkaLogReader(KafkaConnection(kafka), "console", ["erasure.requests"])
    records: list[Record] = []
    while not reader.at_end():
        records += [record for record in reader.poll(0.2) if record.key == subject.encode()]
    reader.close()
    return sorted((r.partition, ErasureRequest.from_json(r.value).request_id) for r in records)


def test_acknowledged_erasure_is_in_every_partition_once(feedback: Service, kafka: str, fresh: str) -> None:
    without_key = {"Authorization": "Bearer none"}
    refused = feedback.http.post("/v1/erasure", json={"user_id": fresh}, headers=without_key)
    assert refused.status_code == 401
    subject = Pseudonymiser(KEY.encode()).of(fresh)
    first = erase(feedback, fresh, fresh)
    assert first.status_code == 202, first.text
    assert first.json()["subject"] == subject
    assert erase(feedback, fresh, fresh).json() == first.json()
    assert [partition for partition, _ in erasure_requests(kafka, subject)] == list(range(P))
    done = ErasureReport(
        line="assistant", request_id=fresh, subject=subject, service="trainer", versions=(), completed_at=NOW
    )
    part = done.model_copy(update={"service": "processor", "partition": 0, "partitions": 1})
    for service, report in (("processor", part), ("trainer", done)):
        publisher = KafkaTransactionalPublisher(KafkaConnection(kafka), service, f"{fresh}-{service}")
        publisher.publish_all([Output("erasure.reports", fresh.encode(), report.to_json())])
        publisher.close()
    assert wait_until_erased(feedback, fresh)["snapshots"] == 0


def wait_until_erased(service: Service, request_id: str) -> dict[str, Any]:
    """Return the erasure's status as soon as it is done."""

    def get() -> dict[str, Any]:
        body: dict[str, Any] = service.http.get(f"/v1/erasure/{request_id}").json()
        return body

    waiting = Retrying(
        stop=stop_after_delay(20),
        wait=wait_fixed(0.1),
        retry=retry_if_not_result(lambda body: body["status"] == "done"),
    )
    status: dict[str, Any] = waiting(get)
    return status


def test_two_processes_write_erasures_without_fencing_each_other(
    feedback: Service, kafka: str, own_redis: str, keys: tuple[Path, str], fresh: str, tmp_path: Path
) -> None:
    env = {
        "KAFKA_BOOTSTRAP_SERVERS": kafka,
        "REDIS_URL": own_redis,
        "LOOPWRIGHT_PARTITIONS": str(P),
        "LOOPWRIGHT_PSEUDONYM_KEY": KEY,
        "LOOPWRIGHT_API_KEYS": str(keys[0]),
    }
    with running("feedback", tmp_path, env) as other:
        other.http.headers.update(bearer(keys[1]))
        answers = [erase(service, fresh, f"{fresh}-{n}") for n in range(3) for service in (feedback, other)]
    assert [answer.status_code for answer in answers] == [202] * 6
    # The second process got the same three requests and found each in the log.
    assert erasure_requests(kafka, Pseudonymiser(KEY.encode()).of(fresh)) == [
        (partition, f"{fresh}-{n}") for partition in range(P) for n in range(3)
    ]


def test_failed_erasure_is_in_no_partition_until_it_is_retried(kafka: str, fresh: str) -> None:
    """A partition that does not exist fails the transaction after other partitions were written."""
    create_topics(KafkaConnection(kafka), P)
    settings = FeedbackSettings(partitions=P + 1, ack_timeout_s=5.0, pseudonym_key=SecretStr(KEY))
    handler = erasure_handler(kafka, settings, fresh)
    body = json.dumps({"user_id": fresh, "request_id": fresh}).encode()
    with pytest.raises(BrokerUnavailable, match=f"under the request_id {fresh}"):
        handler.post_erasure(body, None, None, issued_by="dpo")
    subject = handler.pseudonymiser.of(fresh)
    assert erasure_requests(kafka, subject) == []
    retrying = erasure_handler(kafka, settings.model_copy(update={"partitions": P}), fresh)
    assert retrying.post_erasure(body, None, None, issued_by="dpo").status_code == 202
    assert [partition for partition, _ in erasure_requests(kafka, subject)] == list(range(P))


def erasure_handler(kafka: str, settings: FeedbackSettings, identity: str) -> ErasureHandler:
    return ErasureHandler(
        settings=settings,
        open_publisher=lambda: KafkaTransactionalPublisher(
            KafkaConnection(kafka), "feedback", identity, timeout_s=settings.ack_timeout_s
        ),
        open_requests=lambda: KafkaLogReader(
            KafkaConnection(kafka), "feedback", ["erasure.requests"], partitions=[0]
        ),
        cache=InMemoryCache(),
        clock=SystemClock(),
        pseudonymiser=Pseudonymiser(KEY.encode()),
        lines=KnownLines(frozenset({"assistant"}), VersionsView(), lambda: True),
        erasures=ErasureStatusView(),
    )


async def test_unreachable_broker_gives_503_in_time(fresh: str) -> None:
    publisher = KafkaPublisher(KafkaConnection("127.0.0.1:1"), "feedback", timeout_s=1.0)
    started = time.monotonic()
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app_with(publisher)), base_url="http://feedback"
    ) as http:
        response = await http.post("/v1/feedback", json=thumbs_body(fresh))
    assert response.status_code == 503
    assert response.headers["content-type"] == "application/problem+json"
    assert time.monotonic() - started < 5
    publisher.close()


def app_with(publisher: KafkaPublisher) -> FastAPI:
    """Return the app with this publisher; everything else is in memory."""
    log, versions, cache = InMemoryLog(P), VersionsView(), InMemoryCache()
    handlers = FeedbackHandlers(
        settings=FeedbackSettings(ack_timeout_s=1.0, pseudonym_key=SecretStr(KEY)),
        publisher=AsyncPublisher(publisher),
        cache=InMemoryAsyncCache(cache),
        clock=SystemClock(),
        pseudonymiser=Pseudonymiser(KEY.encode()),
        lines=KnownLines(frozenset({"assistant"}), versions, lambda: True),
        versions=versions,
        erasures=ErasureStatusView(),
        receipts=receipt_lookup(log, P),
    )
    readiness = Readiness("versions")
    follower = TopicFollower(
        "versions",
        lambda: InMemoryLogReader(log, ["model.versions"]),
        versions.apply,
        readiness,
        lambda: None,
    )
    return build_app(handlers, follower, readiness)


def test_sigterm_stops_it_cleanly_and_logs_no_secrets(feedback: Service, keys: tuple[Path, str]) -> None:
    feedback.child.terminate()
    assert feedback.child.wait(20) == 0, feedback.log.read_text()[-2000:]
    assert "alice" not in feedback.log.read_text()
    assert KEY not in feedback.log.read_text()
    assert keys[1] not in feedback.log.read_text()
