"""I11: after an erasure and its deadline, no file of Kafka or of the processor's state holds what the user said.

The test has its own broker and the shipped processor, with days turned into seconds: segments close after two seconds,
retention is six, and the processor appends its fillers every three.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from services.processor.core.batches import BatchLimits
from services.processor.core.erasure.process import ErasureConfig
from services.processor.core.step import ProcessorStep
from services.processor.service import engine_config
from services.processor.settings import ProcessorSettings
from shared.events import (
    FEEDBACK,
    Batch,
    ChatResponse,
    Choice,
    ErasureReport,
    ErasureRequest,
    Message,
)
from shared.stream import rocksdb_store
from shared.stream.engine import Engine
from shared.stream.rocksdb_store import RocksDBStoreFactory
from shared.topics import (
    CHAT_RESPONSES,
    DEAD_LETTERS,
    ERASURE_REPORTS,
    ERASURE_REQUESTS,
    FEEDBACK_EVENTS,
    FEEDBACK_TALLIES,
    PROCESSOR_CHANGELOG,
    TOPICS,
    TRAINING_BATCHES,
)
from tests.brokers import own_kafka
from tests.integration.stream_rig import running, until

SEGMENT_MS, RETENTION_MS, FILLER_INTERVAL_MS = 2_000, 6_000, 3_000
BROKER = {
    "log.cleaner.backoff.ms": "300",
    "log.retention.check.interval.ms": "300",
    "log.initial.task.delay.ms": "300",
    "log.segment.delete.delay.ms": "100",
}
TEXT_TOPICS = (CHAT_RESPONSES, FEEDBACK_EVENTS, DEAD_LETTERS, TRAINING_BATCHES, PROCESSOR_CHANGELOG)
"""Topics with texts of users."""


class ProcessorFiles:
    """A broker with its files, the files of the state, and a producer for the inputs."""

    def __init__(self, kafka: str, folder: Path) -> None:
        self.kafka = kafka
        self.logs = folder / "kafka" / "data" / "log"
        self.state = folder / "state"
        self._producer = Producer({"bootstrap.servers": kafka, "partitioner": "murmur2_random"})

    def create_topics(self) -> None:
        """Create the topics as the topics job does, but with one partition, days as seconds, and uncompressed text."""
        wanted = []
        for topic in TOPICS.values():
            shorter = {"segment.ms": str(SEGMENT_MS), "compression.type": "uncompressed"}
            if topic.compact:
                shorter |= {"max.compaction.lag.ms": str(SEGMENT_MS), "delete.retention.ms": str(SEGMENT_MS)}
            elif topic is not ERASURE_REPORTS:
                shorter |= {"retention.ms": str(RETENTION_MS)}
            wanted.append(NewTopic(topic.name, 1, 1, config=topic.broker_config() | shorter))
        admin = AdminClient({"bootstrap.servers": self.kafka})
        for future in admin.create_topics(wanted).values():
            future.result()

    def publish(self, topic: str, key: str, value: bytes) -> None:
        self._producer.produce(topic, value, key.encode())
        assert self._producer.flush(20) == 0

    def read(self, topic: str) -> list[bytes]:
        """Return the committed values of a topic, without tombstones."""
        reader = Consumer(
            {
                "bootstrap.servers": self.kafka,
                "group.id": "test",
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
            }
        )
        reader.assign([TopicPartition(topic, 0, 0)])
        values: list[bytes] = []
        while (message := reader.poll(10)) is not None and message.error() is None:
            value = message.value()
            if value is not None:
                values.append(value)
        reader.close()
        return values

    def containing(self, text: str) -> set[str]:
        """Return the topics of which a file contains a text, and `state` if one of its files does."""
        places = set()
        for file in [*self.logs.rglob("*"), *self.state.rglob("*")]:
            try:
                if file.is_file() and text.encode() in file.read_bytes():
                    inside = file.is_relative_to(self.logs)
                    places.add(file.parent.name.rsplit("-", 1)[0] if inside else "state")
            except FileNotFoundError:  # removed in the meantime
                continue
        return places


@pytest.fixture
def files(tmp_path: Path) -> Iterator[ProcessorFiles]:
    (tmp_path / "kafka").mkdir()
    with own_kafka(tmp_path / "kafka", BROKER) as address:
        files = ProcessorFiles(address, tmp_path)
        files.create_topics()
        yield files


def publish_conversation(files: ProcessorFiles, ann: str, secret: str) -> None:
    """Publish a response to Ann with a secret, one to Bob, and feedback of both users on both responses."""
    now = datetime.now(UTC)
    for response_id, user, text in (("r1", ann, f"{secret}-asked"), ("r2", "u_bob", "What is Python?")):
        response = ChatResponse(
            line="assistant",
            response_id=response_id,
            version="assistant@base-00000000",
            messages=(Message(role="user", content=text),),
            choices=(Choice(index=0, text="A snake."),),
            user_id=user,
            created_at=now,
        )
        files.publish(CHAT_RESPONSES.name, response_id, response.to_json())
    for event_id, response_id, user, text in (
        ("e1", "r1", ann, f"{secret}-corrected"),
        ("e2", "r1", "u_bob", "A language."),
        ("e3", "r2", ann, f"{secret}-of-another"),
        ("e4", "r2", "u_bob", "A tool."),
    ):
        fields = {
            "line": "assistant", "response_id": response_id, "event_id": event_id, "user_id": user,
            "kind": "correction", "value": text, "received_at": now,
        }  # fmt: skip
        files.publish(FEEDBACK_EVENTS.name, response_id, FEEDBACK.validate_python(fields).to_json())
    files.publish(FEEDBACK_EVENTS.name, "r2", b'{"kind": "correction", "value": "%s-broken' % secret.encode())


def erasure(ann: str) -> ErasureRequest:
    now = datetime.now(UTC)
    return ErasureRequest(
        line="assistant", request_id="q1", subject=ann, requested_at=now, deadline=now + timedelta(days=37)
    )


def test_no_file_holds_text_of_an_erased_user(files: ProcessorFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rocksdb_store, "COMPACTION_PERIOD_S", 1)
    secret, ann = secrets.token_hex(20), f"u_{secrets.token_hex(16)}"
    config = engine_config(ProcessorSettings(kafka_bootstrap_servers=files.kafka, partitions=1))
    step = ProcessorStep(
        BatchLimits(age_ms=500), ErasureConfig(partitions=1, filler_interval_ms=FILLER_INTERVAL_MS)
    )
    engine = Engine(config, step, open_store=RocksDBStoreFactory(files.state, cache_mb=8, flush_s=0.2))
    with running(engine):
        publish_conversation(files, ann, secret)
        until(lambda: len(files.read(TRAINING_BATCHES.name)) == 1, "a batch")
        text_places = {topic.name for topic in TEXT_TOPICS} | {"state"}
        until(lambda: files.containing(secret) == text_places, "the secret in all expected places")
        files.publish(ERASURE_REQUESTS.name, ann, erasure(ann).to_json())
        until(lambda: bool(files.read(ERASURE_REPORTS.name)), "the report")
        until(lambda: files.containing(secret) == set(), "the secret in no file", 60)
        until(
            lambda: {TRAINING_BATCHES.name, FEEDBACK_TALLIES.name}.isdisjoint(files.containing(ann)),
            "her pseudonym in no file of the compacted topics",
            60,
        )
    report = ErasureReport.from_json(files.read(ERASURE_REPORTS.name)[0])
    batches = [Batch.from_json(value) for value in files.read(TRAINING_BATCHES.name)]
    assert report.batches == {"assistant-0-1": 1}
    assert [(batch.batch_id, batch.rewrite) for batch in batches if batch.batch_id == "assistant-0-1"] == [
        ("assistant-0-1", 1)
    ]
    values = [signal.value for batch in batches for example in batch.examples for signal in example.signals]
    assert "A tool." in values
    assert "A language." not in values
    assert files.containing("A tool.") >= {TRAINING_BATCHES.name}
