"""`python -m services.inference` as it is deployed: in a process, on a real Kafka."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deploy.local.ports import choose_ports
from services.inference.service import InferenceService
from services.inference.settings import InferenceSettings
from shared.adapters.artifacts_local import LocalArtifactStore
from shared.adapters.base_model import find_base
from shared.adapters.kafka import KafkaPublisher
from shared.adapters.topic_admin import create_topics
from shared.errors import Misconfigured
from shared.events import ChatResponse
from shared.kafka_connection import KafkaConnection
from shared.records import Output
from shared.settings import load
from shared.versions import RolloutRecord
from tests.fake_vllm import FakeVllm
from tests.inference_factories import make_adapter, rollout_record, version_ref
from tests.inference_process import P, chat, read_all, running, wait_until


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
