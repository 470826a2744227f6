"""Apps that write to Kafka directly: the SDK's publisher and both examples, against a real broker and processor."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from loopwright import NotDelivered
from loopwright.kafka import LoopPublisher
from shared.adapters.kafka import KafkaLogReader
from shared.adapters.topic_admin import create_topics
from shared.dead_letters import parse_origin
from shared.events import Batch, Outcome
from shared.kafka_connection import KafkaConnection
from shared.partitioning import partition_for
from shared.pseudonym import Pseudonymiser
from shared.records import Record
from shared.topics import CHAT_RESPONSES, DEAD_LETTERS, FEEDBACK_EVENTS, FEEDBACK_OUTCOMES, TRAINING_BATCHES
from tests.brokers import own_kafka
from tests.integration.service_process import running
from tests.integration.stream_rig import until

P = 3
KEY = "a key for these tests only"
ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "producers"
QUESTION = [{"role": "user", "content": "Who founded Pellworth?"}]
ANN = Pseudonymiser(KEY.encode()).of("ann")
GARBAGE: list[dict[str, Any]] = [
    {"key": b"r", "value": b"not JSON"},
    {"key": b"r", "value": b"[]"},
    {"key": b"r", "value": b"\xff\xfe\x00"},
    {"key": b"r", "value": b'{"kind":"thumbs","value":"up"}'},
    {"key": b"r", "value": b"[" * 100_000},
    {"key": b"r", "value": None},
    {"key": None, "value": b"{}"},
    {"key": b"\xff\x00", "value": b"{}"},
    {"key": b"r", "value": b"{}", "headers": [("traceparent", b"x" * 100_000)]},
]
"""Records that no reader can use."""
COPIES = 10


@dataclass(frozen=True)
class Deployment:
    """A broker with topics, and a processor that cuts batches after a second."""

    kafka: str
    env: dict[str, str]

    def read(self, topic: str) -> list[Record]:
        reader = KafkaLogReader(KafkaConnection(self.kafka), "test", [topic])
        records: list[Record] = []
        while not reader.at_end():
            records += reader.poll(0.2)
        reader.close()
        return records

    def outcomes(self, response_id: str) -> dict[str | None, str]:
        outcomes = [Outcome.from_json(record.value) for record in self.read(FEEDBACK_OUTCOMES.name)]
        return {o.event_id: str(o.outcome) for o in outcomes if o.response_id == response_id}

    def wait_for(self, response_id: str, expected: dict[str | None, str]) -> None:
        until(lambda: self.outcomes(response_id) == expected, f"{response_id} has {expected}", 60)

    def publisher(self, **arguments: Any) -> LoopPublisher:
        return LoopPublisher(self.kafka, pseudonym_key=KEY, **arguments)

    def run(self, *command: str, path: Path | None = None) -> None:
        environment = {**os.environ, **self.env}
        if path is not None:
            environment["PATH"] = f"{path}{os.pathsep}{environment['PATH']}"
        subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=60)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("producers")
    with own_kafka(folder, partitions=P) as kafka:
        env = {
            "KAFKA_BOOTSTRAP_SERVERS": kafka,
            "LOOPWRIGHT_PARTITIONS": str(P),
            "LOOPWRIGHT_PSEUDONYM_KEY": KEY,
            "LOOPWRIGHT_DATA_DIR": str(folder / "data"),
            "LOOPWRIGHT_PROCESSOR_STORE": "memory",
            "LOOPWRIGHT_PROCESSOR_LIVE_VIEW": "false",
            "LOOPWRIGHT_PROCESSOR_BATCH_AGE_S": "1",
        }
        with running("processor", folder, env):
            yield Deployment(kafka, env)


def test_published_feedback_of_every_kind_is_batched(deployment: Deployment, fresh: str) -> None:
    with deployment.publisher() as publisher:
        publisher.record_response(fresh, QUESTION, "I do not know.", version="own-1", user_id="ann")
        publisher.thumbs_down(fresh, "ann", event_id="thumbs")
        publisher.rate(fresh, "ann", 2, event_id="rating")
        publisher.correct(fresh, "ann", "Orla Fenwick founded it.", event_id="correction")
        publisher.comment(fresh, "ann", "Name the founder of the company.", event_id="comment")
        publisher.prefer(fresh, "ann", under="Orla Fenwick founded it.", event_id="preference")
        publisher.correct(fresh, "bob", "It was me.", event_id="mistake")
        publisher.retract(fresh, "bob", "mistake", event_id="retraction")
    batched = dict.fromkeys(["thumbs", "rating", "correction", "comment", "preference"], "batched")
    deployment.wait_for(fresh, {**batched, "mistake": "retracted", "retraction": "applied_retract"})
    batches = [Batch.from_json(record.value) for record in deployment.read(TRAINING_BATCHES.name)]
    examples = [each for batch in batches for each in batch.examples if each.response_id == fresh]
    assert {signal.user_id for each in examples for signal in each.signals} == {ANN}


def test_records_sent_twice_count_once(deployment: Deployment, fresh: str) -> None:
    for _ in range(2):
        with deployment.publisher() as publisher:
            publisher.correct(fresh, "ann", "Orla Fenwick.", event_id="e1")
            publisher.record_response(fresh, QUESTION, "Nobody.", version="own-1")
    until(lambda: sorted(_all_outcomes(deployment, fresh)) == ["batched", "duplicate"], "both outcomes", 60)


def _all_outcomes(deployment: Deployment, response_id: str) -> list[str]:
    outcomes = [Outcome.from_json(record.value) for record in deployment.read(FEEDBACK_OUTCOMES.name)]
    return [str(outcome.outcome) for outcome in outcomes if outcome.response_id == response_id]


def test_records_are_in_the_partition_that_java_clients_choose(deployment: Deployment, fresh: str) -> None:
    with deployment.publisher() as publisher:
        sent = [publisher.thumbs_up(f"{fresh}-{n}", "ann") for n in range(50)]
    assert {delivery.partition for delivery in sent} == set(range(P))
    for delivery in sent:
        assert delivery.partition == partition_for(delivery.record.key, P)


def test_python_example_ends_in_a_batch(deployment: Deployment, fresh: str) -> None:
    deployment.run(sys.executable, str(EXAMPLES / "python_app.py"), fresh)
    deployment.wait_for(fresh, {"ann-thumbs": "batched", "bob-correction": "batched"})


def test_kcat_example_ends_in_a_batch(deployment: Deployment, fresh: str, tmp_path: Path) -> None:
    path = None
    if shutil.which("kcat") is None:
        path = tmp_path
        kcat = tmp_path / "kcat"
        kcat.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "tests" / "kcat.py"}" "$@"\n')
        kcat.chmod(0o755)
    deployment.run("sh", str(EXAMPLES / "kcat_app.sh"), fresh, path=path)
    deployment.wait_for(fresh, {"ann-thumbs": "batched"})
    for topic, ce_type in (
        (CHAT_RESPONSES.name, b"loopwright.chat.response"),
        (FEEDBACK_EVENTS.name, b"loopwright.feedback.thumbs"),
    ):
        (record,) = [record for record in deployment.read(topic) if record.key == fresh.encode()]
        assert record.partition == partition_for(fresh.encode(), P)
        assert dict(record.headers)["ce_type"] == ce_type
        assert ANN.encode() in (record.value or b"")


def test_garbage_of_other_producers_stops_nobody(deployment: Deployment, fresh: str) -> None:
    def dead_letters() -> int:
        return sum(
            parse_origin(record).topic in (CHAT_RESPONSES.name, FEEDBACK_EVENTS.name)
            for record in deployment.read(DEAD_LETTERS.name)
        )

    before = dead_letters()
    producer = Producer({"bootstrap.servers": deployment.kafka})
    for partition in range(P):
        for number, garbage in enumerate(GARBAGE):
            topic = FEEDBACK_EVENTS.name if number % 2 else CHAT_RESPONSES.name
            for _ in range(COPIES):
                producer.produce(topic, **garbage, partition=partition)
    assert producer.flush(20) == 0
    with deployment.publisher() as publisher:
        publisher.record_response(fresh, QUESTION, "Nobody.", version="own-1")
        publisher.correct(fresh, "ann", "Orla Fenwick.", event_id="e1")
    deployment.wait_for(fresh, {"e1": "batched"})
    until(lambda: dead_letters() - before == P * len(GARBAGE) * COPIES, "all garbage is dead letters", 60)


def test_namespace_is_part_of_the_topics_names(deployment: Deployment, fresh: str) -> None:
    create_topics(KafkaConnection(deployment.kafka, fresh), P)
    with deployment.publisher(namespace=fresh) as publisher:
        delivery = publisher.thumbs_up("r1", "ann").wait()
    assert (delivery.record.topic, delivery.partition) == (FEEDBACK_EVENTS.name, partition_for(b"r1", P))
    reader = KafkaLogReader(KafkaConnection(deployment.kafka, fresh), "test", [FEEDBACK_EVENTS.name])
    records: list[Record] = []
    while not reader.at_end():
        records += reader.poll(0.2)
    reader.close()
    assert [record.key for record in records] == [b"r1"]


def test_unknown_topic_is_not_delivered(deployment: Deployment) -> None:
    publisher = deployment.publisher(namespace="no-such-deployment", delivery_timeout=5)
    with pytest.raises(NotDelivered, match="topic"):
        publisher.thumbs_up("r1", "ann").wait(20)
    with pytest.raises(NotDelivered):
        publisher.close()
