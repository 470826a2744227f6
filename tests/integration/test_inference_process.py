"""`python -m services.inference` as it is deployed: in a process, on a real Kafka."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from deploy.local.ports import choose_ports
from services.inference.service import InferenceService
from services.inference.settings import InferenceSettings
from shared.adapters.artifacts_local import LocalArtifactStore
from shared.adapters.base_model import find_base
from shared.adapters.kafka import KafkaLogReader, KafkaPublisher
from shared.adapters.topic_admin import create_topics
from shared.errors import Misconfigured
from shared.events import ChatResponse
from shared.kafka_connection import KafkaConnection
from shared.records import Output, Record
from shared.settings import load
from shared.versions import RolloutRecord
from tests.fake_vllm import FakeVllm
from tests.inference_factories import make_adapter, rollout_record, version_ref

ROOT = Path(__file__).resolve().parents[2]
P = 6


class InferenceProcess:
    """An inference process with a port and folders for one test."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.port = choose_ports({"inference": 0})["inference"]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "inference.log"
        environment = {
            "LOOPWRIGHT_INFERENCE_PORT": str(self.port),
            "LOOPWRIGHT_PSEUDONYM_KEY": "a key that only this test has",
            "LOOPWRIGHT_DATA_DIR": str(folder / "data"),
            "LOOPWRIGHT_ARTIFACTS": str(folder / "artifacts"),
            "LOOPWRIGHT_PARTITIONS": str(P),
        }
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "services.inference"],
                cwd=ROOT, env={**os.environ, **environment, **settings}, stdout=log, stderr=log,
            )  # fmt: skip

    def checks(self) -> dict[str, str]:
        answer = httpx.get(f"{self.url}/readyz").json()
        return {name: str(detail) for name, detail in answer["checks"].items()}

    def ready(self) -> bool:
        assert self.child.poll() is None, self.log.read_text()
        try:
            return httpx.get(f"{self.url}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def stop(self) -> int:
        """Stop the process and return its exit status."""
        self.child.send_signal(signal.SIGTERM)
        return self.child.wait(40)


def wait_until(condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        threading.Event().wait(0.1)


@contextmanager
def running(folder: Path, **settings: str) -> Iterator[InferenceProcess]:
    process = InferenceProcess(folder, **settings)
    try:
        yield process
    finally:
        if process.child.poll() is None:
            process.child.kill()
        process.child.wait()


def read_all(kafka: str, topic: str) -> list[Record]:
    reader = KafkaLogReader(KafkaConnection(kafka), "console", [topic])
    records = []
    while not reader.at_end():
        records += reader.poll(0.5)
    reader.close()
    return records


def chat(client: OpenAI, line: str, **fields: Any) -> Any:
    defaults: dict[str, Any] = {
        "messages": [{"role": "user", "content": "hello"}],
        "temperature": 0,
        "max_tokens": 8,
    }
    return client.chat.completions.create(model=line, **(defaults | fields))


@pytest.fixture(params=["transformers", "vllm"])
def engine(request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Settings of an engine, and for vLLM two servers that behave like it."""
    if request.param == "transformers":
        yield {}
        return
    servers = [FakeVllm(str(tiny_model), max_model_len=2048) for _ in range(2)]
    yield {
        "LOOPWRIGHT_INFERENCE_ENGINE": "vllm",
        "LOOPWRIGHT_INFERENCE_ENGINE_URLS": ",".join(server.url for server in servers),
        "LOOPWRIGHT_INFERENCE_ADAPTER_DIR": str(tmp_path / "adapters"),
    }
    for server in servers:
        server.close()


@pytest.mark.timeout(240)
def test_promoted_version_is_served_and_all_answers_are_recorded(
    kafka: str, tiny_model: Path, tmp_path: Path, fresh: str, engine: dict[str, str]
) -> None:
    create_topics(KafkaConnection(kafka), P)
    base = find_base(str(tiny_model)).ref(fresh)
    store = LocalArtifactStore(tmp_path / "artifacts")
    v1 = version_ref(fresh, 1, store.put(make_adapter(tiny_model, tmp_path / "v1", seed=1))[1])
    publisher = KafkaPublisher(KafkaConnection(kafka), "rollout")

    def write(value: RolloutRecord | bytes) -> None:
        data = value.to_json() if isinstance(value, RolloutRecord) else value
        publisher.publish(Output("model.rollout", fresh.encode(), data)).result(10)

    write(rollout_record(1, base, line=fresh, action="adopt_base"))
    settings = {
        "KAFKA_BOOTSTRAP_SERVERS": kafka,
        "LOOPWRIGHT_BASE_MODEL": str(tiny_model),
        "LOOPWRIGHT_LINE": fresh,
    } | engine
    with running(tmp_path, **settings) as process, process.client() as client:
        wait_until(process.ready)
        first = chat(client, fresh)
        assert first.model == base.version
        write(fresh.encode() + b" is not a record")
        write(rollout_record(2, v1, line=fresh))
        wait_until(lambda: chat(client, fresh, max_tokens=1).model == v1.version)
        write(rollout_record(3, version_ref(fresh, 2), line=fresh))
        wait_until(lambda: "refused" in process.checks()["rollout"])
        assert process.ready()
        stream = chat(client, fresh, stream=True, temperature=1, max_tokens=400)
        last = next(iter(stream))
        process.child.send_signal(signal.SIGTERM)
        assert last.model == v1.version
        remaining = list(stream)
        assert remaining[-1].choices[0].finish_reason in ("stop", "length")
        assert process.child.wait(40) == 0, process.log.read_text()
    publisher.close()
    responses = [ChatResponse.from_json(record.value) for record in read_all(kafka, "chat.responses")]
    records = {record.response_id: record for record in responses if record.line == fresh}
    assert len(records) == len([record for record in responses if record.line == fresh])
    assert records[first.id].version == base.version
    assert records[last.id].status == "completed"
    dead = [
        record
        for record in read_all(kafka, "dead.letters")
        if record.value == fresh.encode() + b" is not a record"
    ]
    assert len(dead) == 1


@pytest.mark.timeout(120)
def test_without_kafka_it_is_alive_not_ready_and_stops_cleanly(tiny_model: Path, tmp_path: Path) -> None:
    unused_port = choose_ports({"kafka": 0})["kafka"]
    settings = {
        "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{unused_port}",
        "LOOPWRIGHT_BASE_MODEL": str(tiny_model),
    }
    with running(tmp_path, **settings) as process:

        def model_is_loaded() -> bool:
            try:
                return "ok" in process.checks()["model"]
            except httpx.TransportError:
                return False

        wait_until(model_is_loaded)
        assert httpx.get(f"{process.url}/livez").status_code == 200
        assert not process.ready()
        assert process.stop() == 0, process.log.read_text()


def test_without_a_pseudonym_key_it_does_not_start(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPWRIGHT_BASE_MODEL", str(tiny_model))
    monkeypatch.delenv("LOOPWRIGHT_PSEUDONYM_KEY", raising=False)
    with pytest.raises(Misconfigured, match="LOOPWRIGHT_PSEUDONYM_KEY is not set"):
        InferenceService(load(InferenceSettings))
