"""The topics job against a real Kafka with existing topics."""

from __future__ import annotations

import os
import subprocess
import sys

from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from shared.adapters.topic_admin import Difference, apply_settings, create_topics, differing_settings
from shared.kafka_connection import KafkaConnection

P = 6
TOPIC = "erasure.reports"


def topic_differences(kafka: str) -> list[Difference]:
    return [each for each in differing_settings(KafkaConnection(kafka)) if each.topic == TOPIC]


def change(kafka: str, setting: str, value: str) -> None:
    entry = ConfigEntry(setting, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, TOPIC, incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": kafka})
    for future in admin.incremental_alter_configs([resource]).values():
        future.result(20)


def test_existing_settings_change_only_with_apply(kafka: str) -> None:
    create_topics(KafkaConnection(kafka), P)
    assert topic_differences(kafka) == []
    change(kafka, "retention.ms", "86400000")
    change(kafka, "flush.ms", "123456")
    try:
        env = {**os.environ, "KAFKA_BOOTSTRAP_SERVERS": kafka, "LOOPWRIGHT_PARTITIONS": str(P)}
        output = subprocess.run(
            [sys.executable, "-m", "shared.adapters.topic_admin"],
            env=env,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert f"{TOPIC}: retention.ms is 86400000, expected 34560000000" in output
        assert "--apply" in output
        (difference,) = topic_differences(kafka)
        assert (difference.setting, difference.found) == ("retention.ms", "86400000")
        apply_settings(KafkaConnection(kafka), [difference])
        assert topic_differences(kafka) == []
        admin = AdminClient({"bootstrap.servers": kafka})
        resource = ConfigResource(ResourceType.TOPIC, TOPIC)
        assert admin.describe_configs([resource])[resource].result(20)["flush.ms"].value == "123456", (
            "not ours"
        )
    finally:
        apply_settings(KafkaConnection(kafka), differing_settings(KafkaConnection(kafka)))
