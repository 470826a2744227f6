"""Tests of the engine's configuration: which settings reach the Kafka clients, and which are refused."""

from __future__ import annotations

import pytest

from shared.errors import Misconfigured
from shared.kafka_connection import KafkaConnection
from shared.stream.config import EngineConfig


def config(**settings: object) -> EngineConfig:
    defaults: dict[str, object] = {
        "kafka": KafkaConnection("broker:9092"),
        "application": "processor",
        "instance": "one",
        "inputs": ("a", "b"),
        "changelog": "c",
        "dead_letters": "d",
        "outputs": frozenset(),
    }
    return EngineConfig(**(defaults | settings))  # type: ignore[arg-type]


def test_transaction_must_time_out_before_the_session() -> None:
    with pytest.raises(Misconfigured, match="transaction_timeout"):
        config(transaction_timeout=6.0, session_timeout=6.0)
    producer, consumer = config().producer_settings(), config().consumer_settings()
    assert producer["transaction.timeout.ms"] < consumer["session.timeout.ms"]


@pytest.mark.parametrize("inputs", [(), ("a", "a")])
def test_inputs_must_be_named_once_each(inputs: tuple[str, ...]) -> None:
    with pytest.raises(Misconfigured, match="inputs"):
        config(inputs=inputs)
