"""The topics job against a real Kafka with existing topics."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from shared.adapters.topic_admin import Difference, apply_settings, create_topics, differing_settings
from shared.kafka_connection import KafkaConnection
from tests.trainer_fixture import wait_until

P = 6
TOPIC = "erasure.reports"


def topic_differences(kafka: str) -> list[Difference]:
    return [each for each in differing_settings(KafkaConnection(kafka)) if each.topic == TOPIC]


def change(kafka: str, setting: str, value: str, topic: str = TOPIC) -> None:
    entry = ConfigEntry(setting, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": kafka})
    for future in admin.incremental_alter_configs([resource]).values():
        future.result(20)
    deadline = time.monotonic() + 10  # the broker reports the change a moment later
    while admin.describe_configs([resource])[resource].result(20)[setting].value != value:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def run_job(kafka: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "KAFKA_BOOTSTRAP_SERVERS": kafka, "LOOPWRIGHT_PARTITIONS": str(P)}
    command = [sys.executable, "-m", "shared.adapters.topic_admin", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_existing_settings_change_only_with_apply(kafka: str) -> None:
    create_topics(KafkaConnection(kafka), P)
    assert topic_differences(kafka) == []
    change(kafka, "retention.ms", "86400000")
    change(kafka, "flush.ms", "123456")
    # The broker that answers learns of a change a little later.
    wait_until(lambda: topic_differences(kafka), 20, "the change")
    try:
        job = run_job(kafka)
        assert job.returncode == 0
        output = job.stdout
        assert f"{TOPIC}: retention.ms is 86400000, expected 34560000000" in output
        assert "--apply" in output
        (difference,) = topic_differences(kafka)
        assert (difference.setting, difference.found) == ("retention.ms", "86400000")
        apply_settings(KafkaConnection(kafka), [difference])
        wait_until(lambda: not topic_differences(kafka), 20, "the declared setting")
        admin = AdminClient({"bootstrap.servers": kafka})
        resource = ConfigResource(ResourceType.TOPIC, TOPIC)
        assert admin.describe_configs([resource])[resource].result(20)["flush.ms"].value == "123456", (
            "not ours"
        )
    finally:
        apply_settings(KafkaConnection(kafka), differing_settings(KafkaConnection(kafka)))


def test_inputs_without_append_time_fail_the_job_until_applied(kafka: str) -> None:
    create_topics(KafkaConnection(kafka), P)
    for topic, setting, value in (
        ("model.versions", "message.timestamp.type", "CreateTime"),
        ("rollout.changelog", "cleanup.policy", "delete"),
    ):
        change(kafka, setting, value, topic)
    try:
        failed = run_job(kafka)
        assert failed.returncode == 1
        assert "model.versions: message.timestamp.type is CreateTime, expected LogAppendTime" in failed.stderr
        assert "rollout.changelog: cleanup.policy is delete, expected compact" in failed.stderr
        assert "--apply" in failed.stderr
        assert run_job(kafka, "--apply").returncode == 0
        assert run_job(kafka).returncode == 0
    finally:
        apply_settings(KafkaConnection(kafka), differing_settings(KafkaConnection(kafka)))
