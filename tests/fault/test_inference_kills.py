"""I1, I12: what inference has answered is recorded, whatever is killed when. Delivery is `spool`, the default."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from shared.adapters.artifacts_local import LocalArtifactStore
from shared.adapters.base_model import find_base
from shared.adapters.kafka import KafkaPublisher
from shared.adapters.topic_admin import create_topics
from shared.events import ChatResponse
from shared.kafka_connection import KafkaConnection
from shared.records import Output
from shared.serving import Replicas, ServingReport, stable_versions
from shared.versions import RolloutRecord
from tests.fault.broker import own_broker
from tests.inference_factories import LINE, make_adapter, rollout_record, version_ref
from tests.inference_process import P, chat, read_all, running, wait_until


def recorded(kafka: str) -> Counter[str]:
    """Return how often each response is in the log."""
    records = read_all(kafka, "chat.responses")
    return Counter(ChatResponse.from_json(record.value).response_id for record in records)


@pytest.mark.timeout(420)
def test_answers_before_a_kill_are_recorded_once(tiny_model: Path, tmp_path: Path) -> None:
    """Kafka is killed, then inference right after its last answer. Both come back, and inference is killed again."""
    settings = {"LOOPWRIGHT_BASE_MODEL": str(tiny_model), "LOOPWRIGHT_LINE": LINE}
    (tmp_path / "kafka").mkdir()
    with own_broker(tmp_path / "kafka") as broker:
        settings["KAFKA_BOOTSTRAP_SERVERS"] = broker.address
        create_topics(KafkaConnection(broker.address), P)
        adopted = rollout_record(1, find_base(str(tiny_model)).ref(LINE), action="adopt_base")
        publisher = KafkaPublisher(KafkaConnection(broker.address), "rollout")
        publisher.publish(Output("model.rollout", LINE.encode(), adopted.to_json())).result(10)
        publisher.close()
        with running(tmp_path, **settings) as process, process.client() as client:
            wait_until(process.ready)
            early = chat(client, LINE).id
            wait_until(lambda: recorded(broker.address)[early] == 1)
            broker.kill()
            answered = [chat(client, LINE).id for _ in range(3)]
            answered.append([chunk.id for chunk in chat(client, LINE, stream=True)][-1])
            process.child.kill()
        broker.start()
        # Negative control: without the spool, these answers would be lost.
        assert recorded(broker.address) == {early: 1}
        for _ in range(2):
            with running(tmp_path, **settings) as process, process.client() as client:
                wait_until(process.ready)
                answered.append(chat(client, LINE).id)
                wait_until(lambda: set(answered) <= recorded(broker.address).keys())
                wait_until(lambda: process.checks()["spool_sender"] == "ok" and process.spooled() == 0)
                process.child.kill()
        assert recorded(broker.address) == dict.fromkeys([early, *answered], 1)


@pytest.mark.timeout(420)
def test_restart_without_kafka_serves_what_was_served_last(tiny_model: Path, tmp_path: Path) -> None:
    """I7: and once Kafka is back, the replica follows it from there."""
    settings = {
        "LOOPWRIGHT_BASE_MODEL": str(tiny_model),
        "LOOPWRIGHT_LINE": LINE,
        "LOOPWRIGHT_INFERENCE_REPLICA": "one",
    }
    base = find_base(str(tiny_model)).ref(LINE)
    store = LocalArtifactStore(tmp_path / "artifacts")
    v1 = version_ref(LINE, 1, store.put(make_adapter(tiny_model, tmp_path / "v1", seed=1))[1])
    (tmp_path / "kafka").mkdir()
    with own_broker(tmp_path / "kafka") as broker:
        settings["KAFKA_BOOTSTRAP_SERVERS"] = broker.address
        create_topics(KafkaConnection(broker.address), P)

        def order(record: RolloutRecord) -> None:
            publisher = KafkaPublisher(KafkaConnection(broker.address), "rollout")
            publisher.publish(Output("model.rollout", LINE.encode(), record.to_json())).result(30)
            publisher.close()

        order(rollout_record(1, base, action="adopt_base"))
        order(rollout_record(2, v1))
        with running(tmp_path, **settings) as process, process.client() as client:
            wait_until(process.ready)
            assert chat(client, LINE).model == v1.version
            wait_until(lambda: v1.version in served(broker.address))
            process.child.kill()
        broker.kill()
        with running(tmp_path, **settings) as process, process.client() as client:
            wait_until(process.ready)
            assert "record 2" in process.checks()["rollout"]
            assert chat(client, LINE).model == v1.version
            broker.start()
            order(rollout_record(3, base, action="rollback"))
            wait_until(lambda: chat(client, LINE, max_tokens=1).model == base.version)
            wait_until(lambda: served(broker.address) == {base.version})


def served(kafka: str) -> set[str]:
    """Return the versions that the replicas' newest reports name."""
    replicas = Replicas()
    for record in read_all(kafka, "model.serving"):
        if record.value is not None:
            replicas.add(ServingReport.from_json(record.value), record.timestamp)
        else:
            replicas.remove((record.key or b"").decode())
    return stable_versions(replicas.live(LINE, 0))
