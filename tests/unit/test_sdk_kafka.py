"""The SDK's Kafka publisher without a broker: its configuration and its errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from confluent_kafka import KafkaError, Message

from loopwright import InvalidRecord, NotDelivered, QueueFull
from loopwright.kafka import LoopPublisher

KEY = "a key for these tests only"
NOWHERE = "127.0.0.1:1"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "LOOPWRIGHT_PSEUDONYM_KEY",
        "LOOPWRIGHT_KAFKA_CONFIG",
        "LOOPWRIGHT_NAMESPACE",
        "LOOPWRIGHT_LINE",
    ):
        monkeypatch.delenv(name, raising=False)


def publisher(**arguments: object) -> LoopPublisher:
    return LoopPublisher(NOWHERE, **{"pseudonym_key": KEY, "delivery_timeout": 0.5} | arguments)  # type: ignore[arg-type]


def test_without_a_pseudonym_key_nothing_is_sent() -> None:
    with pytest.raises(ValueError, match="LOOPWRIGHT_PSEUDONYM_KEY"):
        LoopPublisher(NOWHERE)


@pytest.mark.parametrize("name", ["acks", "partitioner", "enable.idempotence", "request.required.acks"])
def test_properties_of_the_guarantees_cannot_be_changed(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        publisher(config={name: "1"})


@pytest.mark.parametrize(
    "text", ['{"client.rack": "a", "acks": "1"}', "# TLS\nclient.rack = a\nacks=1\n"], ids=["json", "lines"]
)
@pytest.mark.parametrize("in_file", [True, False])
def test_properties_are_read_as_by_the_services(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, in_file: bool
) -> None:
    if not in_file and not text.startswith("{"):
        in_file = True
    path = tmp_path / "kafka.properties"
    path.write_text(text)
    monkeypatch.setenv("LOOPWRIGHT_KAFKA_CONFIG", str(path) if in_file else text)
    with pytest.raises(ValueError, match="acks"):
        publisher()


def test_line_and_source_are_in_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPWRIGHT_LINE", "support")
    record = publisher(source="my-app").thumbs_up("r1", "ann").record
    assert b'"line":"support"' in record.value
    assert dict(record.headers)["ce_source"] == b"/loopwright/my-app"
    assert b"ann" not in record.value


def test_invalid_record_is_refused_before_it_is_sent() -> None:
    ours = publisher()
    with pytest.raises(InvalidRecord, match="value"):
        ours.rate("r1", "ann", 6)
    with pytest.raises(InvalidRecord, match="user id"):
        ours.thumbs_up("r1", "ann\tb")
    ours.close()


def test_unreachable_broker_is_a_typed_error() -> None:
    ours = publisher()
    with pytest.raises(NotDelivered, match="did not acknowledge"):
        ours.thumbs_up("r1", "ann").wait(0.1)
    with pytest.raises(NotDelivered, match="reachable"):
        ours.flush(0.1)


def test_record_that_timed_out_is_reported_once_by_flush() -> None:
    ours = publisher()
    delivery = ours.thumbs_up("r1", "ann")
    with pytest.raises(NotDelivered, match=r"feedback\.events"):
        ours.flush(20)
    assert delivery.failed
    ours.flush(1)


def test_fatal_error_says_that_a_new_publisher_is_needed() -> None:
    ours = publisher()
    delivery = ours.thumbs_up("r1", "ann")
    delivery.settle(KafkaError(KafkaError._FATAL, "out of order", fatal=True), Message())
    with pytest.raises(NotDelivered, match="create a new one"):
        delivery.wait()


def test_error_in_the_block_takes_precedence() -> None:
    def send_then(error: Exception | None) -> None:
        with publisher() as ours:
            ours.thumbs_up("r1", "ann")
            if error is not None:
                raise error

    with pytest.raises(KeyError):
        send_then(KeyError("theirs"))
    with pytest.raises(NotDelivered):
        send_then(None)


def test_full_queue_is_a_typed_error() -> None:
    ours = publisher(config={"queue.buffering.max.messages": 1}, delivery_timeout=30)
    ours.thumbs_up("r1", "ann")
    with pytest.raises(QueueFull, match="flush"):
        ours.thumbs_up("r2", "ann")


def test_sdk_works_without_confluent_kafka() -> None:
    code = (
        "import sys; sys.modules['confluent_kafka'] = None\n"
        "import loopwright, loopwright.cli, loopwright.records\n"
        "try:\n    import loopwright.kafka\n"
        "except ImportError as error:\n    assert 'loopwright[kafka]' in str(error)\n"
        "else:\n    raise SystemExit('expected an ImportError')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
