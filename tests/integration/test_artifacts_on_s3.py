"""Inference as a process, with its artifact store on S3."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.adapters.artifact_manifest import MANIFEST
from shared.adapters.artifacts import open_artifacts
from shared.adapters.base_model import find_base
from shared.adapters.kafka import KafkaPublisher
from shared.adapters.topic_admin import create_topics
from shared.kafka_connection import KafkaConnection
from shared.records import Output
from tests.inference_factories import make_adapter, rollout_record, version_ref
from tests.integration.test_inference_process import chat, running, wait_until
from tests.s3 import own_s3


@pytest.mark.timeout(240)
def test_version_on_s3_is_served_without_logging_credentials(
    kafka: str, tiny_model: Path, tmp_path: Path, fresh: str
) -> None:
    create_topics(KafkaConnection(kafka), 6)
    publisher = KafkaPublisher(KafkaConnection(kafka), "rollout")
    with own_s3() as bucket:
        place = f"{bucket}/{fresh}"
        _, digest = open_artifacts(place, tmp_path / "mine").put(
            make_adapter(tiny_model, tmp_path / "v1", seed=1)
        )
        v1 = version_ref(fresh, 1, digest)
        for record in (
            rollout_record(1, find_base(str(tiny_model)).ref(fresh), line=fresh, action="adopt_base"),
            rollout_record(2, v1, line=fresh),
        ):
            publisher.publish(Output("model.rollout", fresh.encode(), record.to_json())).result(10)
        settings = {
            "KAFKA_BOOTSTRAP_SERVERS": kafka,
            "LOOPWRIGHT_BASE_MODEL": str(tiny_model),
            "LOOPWRIGHT_LINE": fresh,
            "LOOPWRIGHT_ARTIFACTS": place,
            "AWS_SECRET_ACCESS_KEY": "a-secret-that-no-log-has",
        }
        with running(tmp_path, **settings) as process, process.client() as client:
            wait_until(process.ready)
            wait_until(lambda: chat(client, fresh, max_tokens=1).model == v1.version)
            assert process.stop() == 0
            assert "a-secret-that-no-log-has" not in process.log.read_text()
    publisher.close()
    assert (tmp_path / "data" / "artifacts" / digest / MANIFEST).exists(), "it is read from its cache"
