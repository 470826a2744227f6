"""`python -m services.inference` as it is deployed: its own process, real Kafka."""

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

from deploy.local.ports import choose
from services.inference.__main__ import InferenceService
from services.inference.settings import InferenceSettings
from shared.adapters.artifacts_local import LocalArtifactStore
from shared.adapters.base_model import find_base
from shared.adapters.kafka import KafkaLogReader, KafkaPublisher
from shared.adapters.topic_admin import create_topics
from shared.errors import Misconfigured
from shared.events import ChatResponse
from shared.records import Output, Record
from shared.settings import load
from shared.versions import RolloutRecord
from tests.inference_factories import make_adapter, reference, rollout

ROOT = Path(__file__).resolve().parents[2]


class Process:
    def __init__(self, folder: Path, **settings: str) -> None:
        self.port = choose({"inference": 0})["inference"]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "inference.log"
        environment = {
            "LOOPWRIGHT_INFERENCE_PORT": str(self.port),
            "LOOPWRIGHT_PSEUDONYM_KEY": "a key that only this test has",
            "LOOPWRIGHT_DATA_DIR": str(folder / "data"),
            "LOOPWRIGHT_ARTIFACTS": str(folder / "artifacts"),
        }
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "services.inference"],
                cwd=ROOT, env={**os.environ, **environment, **settings}, stdout=log, stderr=log,
            )  # fmt: skip

    def checks(self) -> dict[str, str]:
        answer = httpx.get(f"{self.url}/readyz").json()
        return {name: str(what) for name, what in answer["checks"].items()}

    def ready(self) -> bool:
        assert self.child.poll() is None, self.log.read_text()
        try:
            return httpx.get(f"{self.url}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def stopped(self) -> int:
        self.child.send_signal(signal.SIGTERM)
        return self.child.wait(40)


def until(true: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        threading.Event().wait(0.1)


@contextmanager
def running(folder: Path, **settings: str) -> Iterator[Process]:
    process = Process(folder, **settings)
    try:
        yield process
    finally:
        if process.child.poll() is None:
            process.child.kill()
        process.child.wait()


def read_all(kafka: str, topic: str) -> list[Record]:
    reader = KafkaLogReader(kafka, "console", [topic])
    records = []
    while not reader.at_end():
        records += reader.poll(0.5)
    reader.close()
    return records


def say(client: OpenAI, line: str, **also: Any) -> Any:
    fields = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 8} | also
    return client.chat.completions.create(model=line, **fields)


@pytest.mark.timeout(240)
def test_a_version_on_the_log_takes_over_and_every_answer_reaches_it_even_the_last(
    kafka: str, tiny_model: Path, tmp_path: Path, fresh: str
) -> None:
    create_topics(kafka, 6)
    base = find_base(str(tiny_model)).ref(fresh)
    store = LocalArtifactStore(tmp_path / "artifacts")
    v1 = reference(fresh, 1, store.put(make_adapter(tiny_model, tmp_path / "v1", seed=1))[1])
    publisher = KafkaPublisher(kafka, "rollout")

    def write(value: RolloutRecord | bytes) -> None:
        data = value.to_json() if isinstance(value, RolloutRecord) else value
        publisher.publish(Output("model.rollout", fresh.encode(), data)).result(10)

    write(rollout(1, base, line=fresh, action="adopt_base"))
    settings = {
        "KAFKA_BOOTSTRAP_SERVERS": kafka,
        "LOOPWRIGHT_BASE_MODEL": str(tiny_model),
        "LOOPWRIGHT_LINE": fresh,
    }
    with running(tmp_path, **settings) as process, process.client() as client:
        until(process.ready)
        first = say(client, fresh)
        assert first.model == base.version
        write(fresh.encode() + b" is no record")
        write(rollout(2, v1, line=fresh))
        until(lambda: say(client, fresh, max_tokens=1).model == v1.version)
        write(rollout(3, reference(fresh, 2), line=fresh))
        until(lambda: "refused" in process.checks()["rollout"])
        assert process.ready()
        stream = say(client, fresh, stream=True, temperature=1, max_tokens=400)
        last = next(iter(stream))
        process.child.send_signal(signal.SIGTERM)
        assert last.model == v1.version
        rest = list(stream)
        assert rest[-1].choices[0].finish_reason in ("stop", "length")
        assert process.child.wait(40) == 0, process.log.read_text()
    publisher.close()
    found = [ChatResponse.from_json(record.value) for record in read_all(kafka, "chat.responses")]
    records = {record.response_id: record for record in found if record.line == fresh}
    assert len(records) == len([record for record in found if record.line == fresh])
    assert records[first.id].version == base.version
    assert records[last.id].status == "completed"
    dead = [
        letter
        for letter in read_all(kafka, "dead.letters")
        if letter.value == fresh.encode() + b" is no record"
    ]
    assert len(dead) == 1


@pytest.mark.timeout(120)
def test_without_kafka_it_lives_says_what_is_missing_and_stops_in_order(
    tiny_model: Path, tmp_path: Path
) -> None:
    nobody = choose({"kafka": 0})["kafka"]
    settings = {"KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{nobody}", "LOOPWRIGHT_BASE_MODEL": str(tiny_model)}
    with running(tmp_path, **settings) as process:

        def lives() -> bool:
            try:
                return "ok" in process.checks()["model"]
            except httpx.TransportError:
                return False

        until(lives)
        assert httpx.get(f"{process.url}/livez").status_code == 200
        assert not process.ready()
        assert process.stopped() == 0, process.log.read_text()


def test_without_a_pseudonym_key_it_does_not_start(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPWRIGHT_BASE_MODEL", str(tiny_model))
    monkeypatch.delenv("LOOPWRIGHT_PSEUDONYM_KEY", raising=False)
    with pytest.raises(Misconfigured, match="LOOPWRIGHT_PSEUDONYM_KEY is not set"):
        InferenceService(load(InferenceSettings))
