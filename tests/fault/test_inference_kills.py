"""I1, I12: what inference has answered is recorded, whatever is killed when. Delivery is `spool`, the default."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from shared.adapters.base_model import find_base
from shared.adapters.kafka import KafkaPublisher
from shared.adapters.topic_admin import create_topics
from shared.events import ChatResponse
from shared.kafka_connection import KafkaConnection
from shared.records import Output
from tests.fault.broker import own_broker
from tests.inference_factories import LINE, rollout_record
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
