"""Processes that host an engine, for tests: started, asked over HTTP, stopped in order; and tallies for their views."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

import httpx
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from deploy.local.ports import HOST, choose
from deploy.local.processes import Program, end, spawn, tail
from shared.events import Tally, from_ms
from shared.topics import FEEDBACK_TALLIES
from tests.integration.stream_rig import Rig

ROOT = Path(__file__).resolve().parents[2]
V1, V2 = "assistant@v1-00000001", "assistant@v2-00000002"
Sent = tuple[bytes | None, bytes | None, int]


def tally(version: str, user: str, partition: int = 0, **figures: int) -> Sent:
    made = Tally(
        line="assistant",
        version=version,
        user_id=user,
        partition=partition,
        updated_at=from_ms(1_700_000_000_000),
        **figures,
    )
    return f"{version}|{user}|{partition}".encode(), made.to_json(), partition


def create(kafka: str, topic: str) -> None:
    """As the topics job does: compacted, so a record without a key would be refused."""
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(topic, 2, 1, config=FEEDBACK_TALLIES.broker_config())])[topic].result()


def write(kafka: str, topic: str, *records: Sent, commit: bool = True) -> None:
    """In one transaction, compressed, as the engine writes."""
    producer = Producer(
        {"bootstrap.servers": kafka, "transactional.id": f"{topic}-writer", "compression.type": "lz4"}
    )
    producer.init_transactions(20)
    producer.begin_transaction()
    for key, value, partition in records:
        producer.produce(topic, value, key, partition)
    assert producer.flush(20) == 0
    (producer.commit_transaction if commit else producer.abort_transaction)(20)


@dataclass
class Worker:
    http: httpx.Client
    child: Popen[bytes]
    stopped_at: float | None = None

    def stop(self) -> None:
        """Tells it to; several may stop at the same time."""
        if self.stopped_at is None:
            self.stopped_at = time.monotonic()
            self.child.terminate()

    def get(self, path: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.http.get(path).json()
        return answer

    def answers(self, path: str, holds: Callable[[httpx.Response], bool]) -> Callable[[], bool]:
        def look() -> bool:
            assert self.child.poll() is None, "the worker ended"
            try:
                return holds(self.http.get(path))
            except httpx.TransportError:
                return False

        return look


@contextmanager
def worker(
    folder: Path, argv: list[str], port: int, env: Mapping[str, str] | None = None
) -> Iterator[Worker]:
    """From its start to its end, which must be in order and quick."""
    log = folder / "worker.log"
    child = spawn(Program("worker", argv, env or {}, cwd=ROOT), folder=folder, log=log)
    with httpx.Client(base_url=f"http://{HOST}:{port}", timeout=10) as http:
        try:
            running = Worker(http, child)
            yield running
            running.stop()
            assert child.wait(20) == 0, tail(log, 30)
            assert time.monotonic() - (running.stopped_at or 0.0) < 12, "it was slow to stop"
        except AssertionError as failed:
            raise AssertionError(f"{failed}\n{tail(log, 40)}") from failed
        finally:
            end(child, seconds=0)


def hosted(rig: Rig, folder: Path, **told: object) -> tuple[list[str], int]:
    port = choose({"worker": 0})["worker"]
    words = {
        "kafka": rig.kafka, "name": rig.name, "partitions": rig.partitions, "instance": "one", "port": port,
        "folder": str(folder / "data"),
    }  # fmt: skip
    return [sys.executable, "-m", "tests.integration.stream_host_worker", json.dumps(words | told)], port


def ready(answer: httpx.Response) -> bool:
    return answer.status_code == 200


def positions_at_end(rig: Rig) -> Callable[[httpx.Response], bool]:
    """Whether `/partitions` says that all was committed that the inputs hold now."""
    ends = rig.ends()

    def holds(answer: httpx.Response) -> bool:
        found = {
            (topic, each["partition"]): at
            for each in answer.json()["partitions"]
            for topic, at in each["positions"].items()
        }
        return found == ends

    return holds
