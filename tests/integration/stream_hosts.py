"""Worker processes that host an engine, for tests: start, query over HTTP, stop; and tallies for their live view."""

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

from deploy.local.ports import HOST, choose_ports
from deploy.local.processes import Program, spawn, tail, terminate
from shared.events import Tally, from_ms
from shared.topics import FEEDBACK_TALLIES
from tests.integration.stream_rig import Rig

ROOT = Path(__file__).resolve().parents[2]
V1, V2 = "assistant@v1-00000001", "assistant@v2-00000002"
Sent = tuple[bytes | None, bytes | None, int]


def tally(version: str, user: str, partition: int = 0, **figures: int) -> Sent:
    """Return a record of `feedback.tallies`."""
    record = Tally(
        line="assistant",
        version=version,
        user_id=user,
        partition=partition,
        updated_at=from_ms(1_700_000_000_000),
        **figures,
    )
    return f"{version}|{user}|{partition}".encode(), record.to_json(), partition


def create_tallies_topic(kafka: str, topic: str) -> None:
    """Create a tallies topic with the production settings: compacted, so it refuses records without a key."""
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(topic, 2, 1, config=FEEDBACK_TALLIES.broker_config())])[topic].result()


def write_tallies(kafka: str, topic: str, *records: Sent, commit: bool = True) -> None:
    """Write records in one compressed transaction, as the engine does; abort it unless `commit`."""
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
        """Request a stop without waiting, so that several workers can stop at the same time."""
        if self.stopped_at is None:
            self.stopped_at = time.monotonic()
            self.child.terminate()

    def get(self, path: str) -> dict[str, Any]:
        body: dict[str, Any] = self.http.get(path).json()
        return body

    def answers(self, path: str, holds: Callable[[httpx.Response], bool]) -> Callable[[], bool]:
        """Return a condition: the response of `path` satisfies `holds`."""

        def check() -> bool:
            assert self.child.poll() is None, "the worker ended"
            try:
                return holds(self.http.get(path))
            except httpx.TransportError:
                return False

        return check


@contextmanager
def running_worker(
    folder: Path, argv: list[str], port: int, env: Mapping[str, str] | None = None
) -> Iterator[Worker]:
    """Run a worker until the end of the block. It must then stop in time, with status 0."""
    log = folder / "worker.log"
    child = spawn(Program("worker", argv, env or {}, cwd=ROOT), folder=folder, log=log)
    with httpx.Client(base_url=f"http://{HOST}:{port}", timeout=10) as http:
        try:
            started = Worker(http, child)
            yield started
            started.stop()
            assert child.wait(20) == 0, tail(log, 30)
            assert time.monotonic() - (started.stopped_at or 0.0) < 12, "the worker was slow to stop"
        except AssertionError as failed:
            raise AssertionError(f"{failed}\n{tail(log, 40)}") from failed
        finally:
            terminate(child, seconds=0)


def host_command(rig: Rig, folder: Path, **settings: object) -> tuple[list[str], int]:
    """Return the command line of a worker for `stream_host_worker`, and its port."""
    port = choose_ports({"worker": 0})["worker"]
    defaults = {
        "kafka": rig.kafka, "name": rig.name, "partitions": rig.partitions, "instance": "one", "port": port,
        "folder": str(folder / "data"),
    }  # fmt: skip
    return [
        sys.executable,
        "-m",
        "tests.integration.stream_host_worker",
        json.dumps(defaults | settings),
    ], port


def is_ready(response: httpx.Response) -> bool:
    return response.status_code == 200


def all_processed(rig: Rig) -> Callable[[httpx.Response], bool]:
    """Return a check of `/partitions`: everything that the inputs hold at this call was committed."""
    ends = rig.ends()

    def holds(response: httpx.Response) -> bool:
        positions = {
            (topic, each["partition"]): offset
            for each in response.json()["partitions"]
            for topic, offset in each["positions"].items()
        }
        return positions == ends

    return holds
