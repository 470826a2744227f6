"""The console process with a real Kafka and Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from tenacity import RetryError, Retrying, retry_if_not_result, stop_after_delay, wait_fixed

from services.console.core.ledger import CountedRecords
from services.console.topic_offsets import KafkaEndOffsets
from shared.adapters import redis_keys
from shared.adapters.kafka import KafkaPublisher
from shared.adapters.redis import RedisCache
from shared.adapters.topic_admin import create_topics
from shared.commands import CommandResult
from shared.events import LogRecord, Outcome, OutcomeKind, Thumbs
from shared.kafka_connection import KafkaConnection
from shared.live_status import CollectedStatus
from shared.records import Output
from shared.serving import ServingReport
from shared.versions import ModelVersion, RolloutRecord, VersionRef
from tests.integration.service_process import Service, running

P = 6
NOW = datetime(2026, 3, 4, tzinfo=UTC)


@pytest.fixture(scope="module")
def env(kafka: str, redis_url: str) -> dict[str, str]:
    create_topics(KafkaConnection(kafka), P)
    return {"KAFKA_BOOTSTRAP_SERVERS": kafka, "REDIS_URL": redis_url, "LOOPWRIGHT_PARTITIONS": str(P)}


@pytest.fixture(scope="module")
def console(env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running("console", tmp_path_factory.mktemp("console"), env) as service:
        yield service


def put(kafka: str, service: str, topic: str, key: str, record: LogRecord) -> None:
    publisher = KafkaPublisher(KafkaConnection(kafka), service)
    publisher.publish(Output(topic, key.encode(), record.to_json())).result(10)
    publisher.close()


def wait_until(get: Callable[[], Any], condition: Callable[[Any], bool]) -> Any:
    """Return the first value of `get` that meets the condition."""
    retrying = Retrying(stop=stop_after_delay(20), wait=wait_fixed(0.1), retry=retry_if_not_result(condition))
    try:
        return retrying(get)
    except RetryError as error:
        pytest.fail(f"still {error.last_attempt.result()}")


def base_of(line: str) -> VersionRef:
    return VersionRef(version=f"{line}@base-00000000", kind="base", digest="0" * 64)


def adopt_base(kafka: str, line: str) -> None:
    base = base_of(line)
    version = ModelVersion(line=line, ref=base, base=base.version, base_model="b", created_at=NOW)
    put(kafka, "trainer", "model.versions", base.version, version)
    record = RolloutRecord(
        line=line, seq=1, action="adopt_base", stable=base, reason="the base", decided_at=NOW
    )
    put(kafka, "rollout", "model.rollout", line, record)
    report = ServingReport(line=line, replica="one", seq=1, stable=base.version, reported_at=NOW)
    put(kafka, "inference", "model.serving", report.key, report)


def test_ledger_follows_the_log(console: Service, kafka: str, fresh: str) -> None:
    def status() -> Any:
        return console.http.get("/api/status").json()

    before = status()
    for n in range(3):
        event = Thumbs(
            line=fresh, response_id=f"{fresh}-{n}", event_id="e", user_id="u_1", value="up", received_at=NOW
        )
        put(kafka, "feedback", "feedback.events", event.response_id, event)
    outcome = Outcome(
        line=fresh, response_id=f"{fresh}-0", event_id="e", outcome=OutcomeKind.ERASED, decided_at=NOW
    )
    put(kafka, "processor", "feedback.outcomes", outcome.response_id, outcome)
    after = wait_until(
        status, lambda now: now["ledger"].get("erased", 0) == before["ledger"].get("erased", 0) + 1
    )
    assert after["accepted"] >= before["accepted"] + 3
    # Other tests write outcomes without events to this broker; pending is then 0.
    assert after["pending"] == max(0, after["accepted"] - sum(after["ledger"].values()))


def test_status_shows_serving_versions_and_live_status_of_a_line(
    console: Service, kafka: str, redis_url: str, fresh: str
) -> None:
    adopt_base(kafka, fresh)
    collected = CollectedStatus(
        usable=2,
        needed=24,
        users=1,
        users_needed=3,
        examples=5,
        held={},
        batches=1,
        reason="2 of 24 usable examples",
        updated_at=NOW,
    )
    RedisCache(redis_url).put(redis_keys.collected(fresh), collected.to_json(), ttl_s=60)
    path = f"/api/status?line={fresh}"
    status = wait_until(
        lambda: console.http.get(path).json(), lambda now: now["serving"] and now["versions"] == 1
    )
    assert (status["serving"]["version"], status["serving"]["seq"]) == (base_of(fresh).version, 1)
    assert CollectedStatus.model_validate(status["collected"]) == collected
    versions = console.http.get(f"/api/versions?line={fresh}").json()
    assert [(v["version"], v["serving"]) for v in versions] == [(base_of(fresh).version, True)]


def test_command_is_in_the_log_and_gets_its_result(console: Service, kafka: str, fresh: str) -> None:
    adopt_base(kafka, fresh)
    command = {"kind": "promote", "line": fresh, "version": base_of(fresh).version}
    response = wait_until(
        lambda: console.http.post("/api/commands", json=command), lambda r: r.status_code == 202
    )
    command_id = response.json()["command_id"]
    path = f"/api/commands/{command_id}"
    assert console.http.get(path).json()["status"] == "pending"
    result = CommandResult(
        line=fresh, command_id=command_id, status="refused", message="no", executor="rollout", finished_at=NOW
    )
    put(kafka, "rollout", "operator.results", command_id, result)
    assert (
        wait_until(lambda: console.http.get(path).json(), lambda body: body["status"] == "refused")["message"]
        == "no"
    )


def test_restarted_console_shows_the_same(
    console: Service, env: dict[str, str], kafka: str, fresh: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    adopt_base(kafka, fresh)
    path = f"/api/versions?line={fresh}"
    before = wait_until(
        lambda: console.http.get(path).json(), lambda versions: versions and versions[0]["serving"]
    )
    rollout = console.http.get(f"/api/rollout?line={fresh}").json()
    with running("console", tmp_path_factory.mktemp("again"), env) as again:
        assert again.http.get(path).json() == before
        assert again.http.get(f"/api/rollout?line={fresh}").json() == rollout


def test_sigterm_stops_it_cleanly(console: Service) -> None:
    console.child.terminate()
    assert console.child.wait(20) == 0, console.log.read_text()[-2000:]


def test_count_since_leaves_out_what_retention_has_deleted(kafka: str, fresh: str) -> None:
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(fresh, 2, 1)])[fresh].result(10)
    producer = Producer({"bootstrap.servers": kafka})
    for timestamp in (1_000, 2_000, 3_000):
        producer.produce(fresh, b"x", partition=0, timestamp=timestamp)
        producer.produce(fresh, b"x", partition=1, timestamp=timestamp)
    producer.flush(10)
    offsets = KafkaEndOffsets(KafkaConnection(kafka), "console", fresh, 2)
    assert offsets.count_since(2_000) == CountedRecords(6, complete=True), "nothing was deleted yet"
    deleted = TopicPartition(fresh, 0, 1)
    admin.delete_records([deleted])[deleted].result(10)
    assert offsets.count_since(2_000) == CountedRecords(4, complete=False)
    assert offsets.count_since(4_000) == CountedRecords(0, complete=False), "no record is so new"
    producer.produce(fresh, b"x", partition=1, timestamp=5_000)
    producer.flush(10)
    assert offsets.count_since(4_000) == CountedRecords(1, complete=False)
    assert offsets.total() == 7
    offsets.close()
