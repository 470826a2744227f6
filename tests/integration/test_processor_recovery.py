"""The processor after its changelog was lost: it halts, and `recover` lets it go on without using a batch id again."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from confluent_kafka import KafkaException
from tenacity import Retrying, retry_if_exception_type, retry_if_result, stop_after_delay, wait_fixed

from services.processor.core.batches import BatchLimits
from services.processor.core.erasure.process import ErasureConfig
from services.processor.core.step import ProcessorStep
from services.processor.service import engine_config
from services.processor.settings import ProcessorSettings
from shared.adapters.kafka_clients import build_admin, build_producer
from shared.adapters.log_lookup import KafkaLogRanges
from shared.adapters.topic_admin import create_topics
from shared.events import FEEDBACK, ChatResponse, Choice, Message
from shared.kafka_connection import KafkaConnection
from shared.records import Record
from shared.stream.engine import Engine
from shared.topics import CHAT_RESPONSES, FEEDBACK_EVENTS, PROCESSOR_CHANGELOG, TRAINING_BATCHES
from tests.integration.stream_rig import running, until

ROOT = Path(__file__).resolve().parents[2]


class Deployment:
    """A deployment with one partition, in a namespace of its own on the shared broker."""

    def __init__(self, kafka: str, namespace: str) -> None:
        self.connection = KafkaConnection(kafka, namespace)
        self.settings = ProcessorSettings(kafka_bootstrap_servers=kafka, namespace=namespace, partitions=1)
        create_topics(self.connection, 1)

    def correct(self, *names: str) -> None:
        """Send a response and a correction of it for each name."""
        now = datetime.now(UTC)
        producer = build_producer(self.connection, {})
        for name in names:
            response = ChatResponse(
                line="assistant",
                response_id=name,
                version="own-model-1",
                messages=(Message(role="user", content=f"What is {name}?"),),
                choices=(Choice(index=0, text="I do not know."),),
                created_at=now,
            )
            event = FEEDBACK.validate_python(
                {
                    "line": "assistant", "response_id": name, "event_id": "e1", "user_id": "u_ann",
                    "kind": "correction", "value": f"It is {name}.", "received_at": now,
                }
            )  # fmt: skip
            producer.produce(CHAT_RESPONSES.name, response.to_json(), name.encode())
            producer.produce(FEEDBACK_EVENTS.name, event.to_json(), name.encode())
        assert producer.flush(20) == 0

    def engine(self) -> Engine:
        step = ProcessorStep(BatchLimits(age_ms=300), ErasureConfig(1))
        return Engine(engine_config(self.settings), step)

    def batches(self) -> list[Record]:
        ranges = KafkaLogRanges(self.connection, "test")
        return list(ranges.read(TRAINING_BATCHES.name, {0: ranges.bounds(TRAINING_BATCHES.name)[0]}))

    def batch_ids(self) -> list[str]:
        return [(record.key or b"").decode() for record in self.batches()]

    def lose_changelog(self) -> None:
        admin = build_admin(self.connection, {})
        admin.delete_topics([PROCESSOR_CHANGELOG.name])[PROCESSOR_CHANGELOG.name].result()
        for attempt in Retrying(
            retry=retry_if_exception_type((KafkaException, AssertionError)),
            stop=stop_after_delay(15),
            wait=wait_fixed(0.2),
        ):
            with attempt:
                assert create_topics(self.connection, 1) == [PROCESSOR_CHANGELOG.name]

    def recover(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        env = {
            **os.environ,
            "KAFKA_BOOTSTRAP_SERVERS": self.connection.servers,
            "LOOPWRIGHT_NAMESPACE": self.connection.namespace,
            "LOOPWRIGHT_PARTITIONS": "1",
        }
        command = [sys.executable, "-m", "services.processor", "recover", "--partition", "0", *arguments]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def test_lost_changelog_never_leads_to_a_batch_id_used_again(kafka: str, fresh: str) -> None:
    deployment = Deployment(kafka, fresh)
    with running(deployment.engine()):
        for number, name in enumerate(("r1", "r2"), start=1):
            deployment.correct(name)
            until(lambda wanted=number: len(deployment.batches()) == wanted, f"batch {number}")
    assert deployment.batch_ids() == ["assistant-0-1", "assistant-0-2"]
    deployment.lose_changelog()
    deployment.correct("r3")
    engine = deployment.engine()
    with running(engine):
        until(lambda: engine.state == "halted", "halting")
        assert "the changelog holds no state" in engine.reason
        assert "python -m services.processor recover --partition 0" in engine.reason
        refused = deployment.recover("--from", "inputs-earliest", "--apply")
        assert refused.returncode == 1
        assert "stop every process of processor first" in refused.stderr
    assert len(deployment.batches()) == 2
    planned = deployment.recover("--from", "inputs-earliest")
    assert planned.returncode == 0, planned.stderr
    assert "chat.responses: continue at offset 0" in planned.stdout
    assert "nothing was written" in planned.stdout
    wait = Retrying(  # the broker may not have removed the former member yet
        retry=retry_if_result(lambda done: done.returncode != 0),
        stop=stop_after_delay(20),
        wait=wait_fixed(0.5),
    )
    assert "written" in wait(deployment.recover, "--from", "inputs-earliest", "--apply").stdout
    with running(deployment.engine()):
        until(lambda: b"It is r3." in b"".join(r.value or b"" for r in deployment.batches()), "the rest")
    ids = deployment.batch_ids()
    assert len(ids) == len(set(ids)), "no id was used again"
    assert ids[:3] == ["assistant-0-1", "assistant-0-2", "assistant-0-3"]


def test_help_explains_the_sources() -> None:
    command = [sys.executable, "-m", "services.rollout", "recover", "--help"]
    env = {**os.environ, "COLUMNS": "2000"}
    shown = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
    assert all(
        f"{source}: " in shown for source in ("changelog", "group", "inputs-earliest", "inputs-latest")
    )
    assert "--apply" in shown
