"""Several processes of one service at once: they share the work or stand by, and never fence each other."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from confluent_kafka import Consumer, TopicPartition

from deploy.local.ports import HOST, choose_ports
from deploy.local.processes import Program, spawn, tail, terminate
from shared.adapters.kafka import KafkaPublisher
from shared.commands import Pause
from shared.events import LogRecord
from shared.kafka_connection import KafkaConnection
from shared.records import Output
from shared.topics import MODEL_ROLLOUT, MODEL_VERSIONS, OPERATOR_COMMANDS
from shared.versions import GateReport, ModelVersion, RolloutRecord, VersionRef
from tests.brokers import own_kafka
from tests.integration.stream_hosts import ROOT, Worker
from tests.integration.stream_rig import until

NOW = datetime(2026, 3, 4, tzinfo=UTC)
BASE = VersionRef(version="assistant@base-00000000", kind="base", digest="0" * 64)
V1 = VersionRef(version="assistant@v1-11111111", kind="lora", uri="file:///v1", digest="1" * 64)
PARTITIONS = 4


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a separate Kafka with the services' topics, whose names are fixed."""
    with own_kafka(tmp_path_factory.mktemp("own"), partitions=PARTITIONS) as address:
        yield address


@contextmanager
def process(kafka: str, service: str, folder: Path, name: str) -> Iterator[Worker]:
    """Run a service with its default instance, on a data folder that all its processes share."""
    port = choose_ports({name: 0})[name]
    env = {
        "KAFKA_BOOTSTRAP_SERVERS": kafka,
        "LOOPWRIGHT_PARTITIONS": str(PARTITIONS),
        "LOOPWRIGHT_DATA_DIR": str(folder / "data"),
        f"LOOPWRIGHT_{service.upper()}_PORT": str(port),
    }
    log = folder / f"{name}.log"
    argv = [sys.executable, "-m", f"services.{service}"]
    child = spawn(Program(name, argv, env, cwd=ROOT), folder=folder, log=log)
    with httpx.Client(base_url=f"http://{HOST}:{port}", timeout=10) as http:
        try:
            yield Worker(http, child)
        except AssertionError as failed:
            raise AssertionError(f"{failed}\n{tail(log, 40)}") from failed
        finally:
            terminate(child, seconds=15)


def owned(worker: Worker) -> list[int]:
    return [each["partition"] for each in worker.get("/partitions")["partitions"]]


def is_ready(worker: Worker) -> None:
    until(worker.answers("/readyz", lambda response: response.status_code == 200), "ready", 45)


def kill(worker: Worker) -> None:
    """Kill the service itself with SIGKILL."""
    os.kill(worker.child.pid, signal.SIGKILL)
    worker.child.wait(10)


def put(kafka: str, writer: str, topic: str, record: LogRecord) -> None:
    publisher = KafkaPublisher(KafkaConnection(kafka), writer)
    publisher.publish(Output(topic, b"k", record.to_json(), partition=0)).result(10)
    publisher.close()


def version(ref: VersionRef, gate: GateReport | None = None) -> ModelVersion:
    return ModelVersion(
        line="assistant", ref=ref, base=BASE.version, base_model="tiny", gate=gate, created_at=NOW
    )


def decisions(kafka: str) -> list[tuple[int, str, str]]:
    """Return (seq, action, stable) of every committed record on `model.rollout`."""
    consumer = Consumer(
        {"bootstrap.servers": kafka, "group.id": "decisions", "isolation.level": "read_committed"}
    )
    partition = TopicPartition(MODEL_ROLLOUT.name, 0, 0)
    _, end = consumer.get_watermark_offsets(partition, timeout=10)
    consumer.assign([partition])
    found: list[tuple[int, str, str]] = []
    for message in consumer.consume(end, 2.0) if end else []:
        record = RolloutRecord.from_json(message.value())
        found.append((record.seq, record.action, record.stable.version))
    consumer.close()
    return found


def test_second_rollout_stands_by_and_takes_over_after_a_kill(own: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        workers = {name: stack.enter_context(process(own, "rollout", tmp_path, name)) for name in "ab"}
        for worker in workers.values():
            is_ready(worker)
        until(lambda: sorted(map(owned, workers.values())) == [[], [0]], "one owner")
        (owner,) = (name for name, worker in workers.items() if owned(worker))
        (standby,) = set(workers) - {owner}
        put(own, "trainer", MODEL_VERSIONS.name, version(BASE))
        until(lambda: len(decisions(own)) == 1, "the first decision")
        assert "standing by" in workers[standby].get("/readyz")["checks"]["engine"]
        assert [worker.child.poll() for worker in workers.values()] == [None, None]

        kill(workers[owner])
        put(
            own,
            "trainer",
            MODEL_VERSIONS.name,
            version(V1, GateReport(verdict="passed", gated_against=BASE.version)),
        )
        until(lambda: len(decisions(own)) == 2, "the decision of the other one", 30)

        third = stack.enter_context(process(own, "rollout", tmp_path, "c"))
        is_ready(third)
        until(lambda: sorted((owned(third), owned(workers[standby]))) == [[], [0]], "one owner again")
        pause = Pause(line="assistant", command_id="c1", issued_at=NOW)
        put(own, "console", OPERATOR_COMMANDS.name, pause)
        until(lambda: len(decisions(own)) == 3, "the third decision")
        assert decisions(own) == [
            (1, "adopt_base", BASE.version),
            (2, "promote", V1.version),
            (3, "pause", V1.version),
        ]
        assert workers[standby].child.poll() is None
        assert third.child.poll() is None


def test_two_processors_with_default_settings_share_the_partitions(own: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        workers = {name: stack.enter_context(process(own, "processor", tmp_path, name)) for name in "ab"}
        for worker in workers.values():
            is_ready(worker)
        until(
            lambda: sorted(n for worker in workers.values() for n in owned(worker)) == [0, 1, 2, 3],
            "shared",
            30,
        )
        assert all(owned(worker) for worker in workers.values())
        kill(workers["a"])
        until(lambda: owned(workers["b"]) == [0, 1, 2, 3], "all of them", 30)
        third = stack.enter_context(process(own, "processor", tmp_path, "c"))
        is_ready(third)
        until(lambda: sorted(owned(third) + owned(workers["b"])) == [0, 1, 2, 3], "shared again", 30)
        assert owned(third)
        assert workers["b"].child.poll() is None
    assert sorted(path.name for path in (tmp_path / "data" / "loopwright-processor" / "state").iterdir()) == [
        "0",
        "1",
    ]
