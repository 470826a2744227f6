"""Tests of the input consumer's rebalance callbacks, without a broker."""

from __future__ import annotations

import pytest
from confluent_kafka import TopicPartition

from shared.errors import Misconfigured
from shared.stream.inputs import InputConsumer
from tests.unit.test_stream_config import config


class FakeConsumer:
    """Consumer that is passed to rebalance callbacks. Records its assignment."""

    def __init__(self) -> None:
        self.assignment: list[TopicPartition] | None = None

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.assignment = partitions


def test_same_partition_of_every_input_must_be_assigned_together() -> None:
    inputs, consumer = InputConsumer(config()), FakeConsumer()
    assignment = [TopicPartition(topic, number) for topic in "ab" for number in (2, 0)]
    inputs._on_assign(consumer, assignment)  # type: ignore[arg-type]
    assert inputs.assigned == [0, 2]
    assert consumer.assignment == []  # nothing is read before the state is restored
    with pytest.raises(Misconfigured, match="assigned to one member"):
        inputs._on_assign(consumer, assignment[:3])  # type: ignore[arg-type]
    inputs.close()


def test_lost_partitions_are_distinguished_from_revoked_ones() -> None:
    inputs, consumer = InputConsumer(config()), FakeConsumer()
    inputs._on_assign(consumer, [TopicPartition(topic, 0) for topic in "ab"])  # type: ignore[arg-type]
    inputs._on_lost(consumer, [])  # type: ignore[arg-type]
    assert inputs.assigned is None
    assert inputs.revoke_reason is not None
    assert inputs.revoke_reason.startswith("lost")
    inputs._on_revoke(consumer, [])  # type: ignore[arg-type]
    assert inputs.revoke_reason == "handed over"
    inputs.close()
