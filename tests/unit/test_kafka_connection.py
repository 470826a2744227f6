"""Tests of how a deployment reaches Kafka: its properties, its namespace, and what the log shows of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.adapters.kafka import KafkaLogReader, KafkaPublisher
from shared.adapters.kafka_clients import build_admin, client_settings
from shared.errors import Misconfigured
from shared.kafka_connection import RESERVED_PROPERTIES, KafkaConnection, KafkaProperties
from shared.settings import Settings, load
from shared.topics import TOPICS

FILE = """\
# how to reach the cluster
security.protocol=SASL_SSL
sasl.mechanism = SCRAM-SHA-512

sasl.username=loop
sasl.password=p=w=\U0001f600
"""
PARSED = {
    "security.protocol": "SASL_SSL",
    "sasl.mechanism": "SCRAM-SHA-512",
    "sasl.username": "loop",
    "sasl.password": "p=w=\U0001f600",
}


@pytest.fixture(autouse=True)
def no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOOPWRIGHT_KAFKA_CONFIG", raising=False)
    monkeypatch.delenv("LOOPWRIGHT_NAMESPACE", raising=False)


@pytest.mark.parametrize("text", [FILE, json.dumps(PARSED)], ids=["lines", "json"])
def test_properties_come_from_a_file(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "client.properties"
    path.write_text(text)
    monkeypatch.setenv("LOOPWRIGHT_KAFKA_CONFIG", str(path))
    assert dict(load(Settings).kafka.properties) == PARSED


def test_properties_come_from_json_in_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPWRIGHT_KAFKA_CONFIG", json.dumps(PARSED | {"enable.ssl.x": True, "linger.ms": 7}))
    monkeypatch.setenv("LOOPWRIGHT_NAMESPACE", "team-a.prod")
    kafka = load(Settings).kafka
    assert dict(kafka.properties) == PARSED | {"enable.ssl.x": "true", "linger.ms": "7"}
    assert kafka.prefix == "team-a.prod."


def test_without_settings_the_connection_is_plain() -> None:
    kafka = load(Settings).kafka
    assert (kafka.servers, kafka.prefix, dict(kafka.properties)) == ("127.0.0.1:9092", "", {})


def test_secret_properties_are_masked_wherever_they_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "sasl.password": "s3cret-one",
        "ssl.key.pem": "s3cret-two",
        "ssl.key.password": "s3cret-three",
        "sasl.oauthbearer.client.secret": "s3cret-four",
        "sasl.oauthbearer.config": "s3cret-five",
        "some.future.credential": "s3cret-six",
    }
    monkeypatch.setenv("LOOPWRIGHT_KAFKA_CONFIG", json.dumps(secrets | {"security.protocol": "SASL_SSL"}))
    settings = load(Settings)
    for shown in (
        str(settings.masked()),
        repr(settings),
        str(settings.kafka),
        repr(settings.kafka.properties),
    ):
        assert "s3cret" not in shown
    assert "security.protocol=SASL_SSL, " in settings.masked()["kafka_config"] + ", "
    assert "sasl.password=***" in settings.masked()["kafka_config"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("/no/such/file", "cannot read the file"),
        ('{"a": ', "not valid JSON"),
        ('{"a": {"b": 1}}', "property a"),
        ('{"linger.ms": 1, "linger.ms": 2}', "linger.ms is set twice"),
        ('{"bootstrap.servers": "s3cret:1"}', "set KAFKA_BOOTSTRAP_SERVERS instead"),
        *((json.dumps({name: "s3cret"}), f"property {name}") for name in sorted(RESERVED_PROPERTIES)),
    ],
)
def test_invalid_properties_are_refused_by_name(
    text: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOPWRIGHT_KAFKA_CONFIG", text)
    with pytest.raises(Misconfigured) as raised:
        load(Settings)
    assert complaint in str(raised.value)
    assert "LOOPWRIGHT_KAFKA_CONFIG" in str(raised.value)
    assert "s3cret" not in str(raised.value)


def test_line_without_equals_sign_is_named_by_number(tmp_path: Path) -> None:
    path = tmp_path / "client.properties"
    path.write_text("security.protocol=SSL\ns3cret\n")
    with pytest.raises(ValueError, match="line 2") as raised:
        KafkaProperties.parse(path)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("properties", "named"),
    [
        ({"no.such.property": "1"}, "no.such.property"),
        ({"security.protocol": "carrier pigeon"}, "security.protocol"),
        ({"socket.timeout.ms": "soon"}, "socket.timeout.ms"),
        ({"security.protocol": "ssl", "ssl.ca.location": "/no/such/ca"}, "ssl.ca.location"),
        ({"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN"}, "sasl.username"),
    ],
)
def test_property_that_librdkafka_refuses_is_named(properties: dict[str, str], named: str) -> None:
    kafka = KafkaConnection("127.0.0.1:9", properties=KafkaProperties(properties | {"log_level": "0"}))
    for build in (
        lambda: build_admin(kafka, {}),
        lambda: KafkaPublisher(kafka, "feedback"),
        lambda: KafkaLogReader(kafka, "console", ["model.rollout"]),
    ):
        with pytest.raises(Misconfigured, match="LOOPWRIGHT_KAFKA_CONFIG") as raised:
            build()
        assert named in str(raised.value)


@pytest.mark.parametrize("namespace", ["a", "prod", "team-a.prod", "0_x", "a" * 41])
def test_namespaces_leave_room_for_every_topic(namespace: str) -> None:
    prefix = Settings(namespace=namespace).kafka.prefix
    assert all(len(prefix + topic) <= 249 for topic in TOPICS)


@pytest.mark.parametrize("namespace", ["-a", "a.", ".", "A", "a b", "a/b", "ä", "a" * 42, "a\n"])
def test_invalid_namespaces_are_refused(namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPWRIGHT_NAMESPACE", namespace)
    with pytest.raises(Misconfigured, match="LOOPWRIGHT_NAMESPACE"):
        load(Settings)


@pytest.mark.parametrize(("namespace", "prefix"), [("", ""), ("prod", "prod.")])
def test_ids_of_clients_begin_with_the_namespace(namespace: str, prefix: str) -> None:
    kafka = KafkaConnection("broker:9092", namespace, KafkaProperties({"linger.ms": "7"}))
    own = {"group.id": "g", "transactional.id": "t", "client.id": "c", "linger.ms": 5, "acks": "all"}
    settings = client_settings(kafka, own)
    assert (
        settings.items()
        >= {
            "bootstrap.servers": "broker:9092",
            "group.id": f"{prefix}g",
            "transactional.id": f"{prefix}t",
            "client.id": f"{prefix}c",
            "acks": "all",
            "linger.ms": "7",
        }.items()
    )
