"""What a broker says of a topic never stops a service: it may be granted, created or led a moment later."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError

from shared.adapters.topic_partitions import read_partitions
from shared.errors import BrokerUnavailable, NotPermitted, TopicUnavailable

CODES = sorted(
    {
        value
        for name, value in vars(KafkaError).items()
        if name.isupper() and isinstance(value, int) and value != KafkaError.NO_ERROR
    }
)


class Client:
    """A broker that says one thing of every topic."""

    def __init__(self, error: KafkaError | None, partitions: dict[int, None]) -> None:
        self._found = SimpleNamespace(error=error, partitions=partitions)

    def list_topics(self, topic: str | None = None, timeout: float = -1) -> Any:
        return SimpleNamespace(topics={topic: self._found})


def test_partitions_are_sorted() -> None:
    assert read_partitions(Client(None, {2: None, 0: None, 1: None}), "a") == [0, 1, 2]


@pytest.mark.parametrize("code", CODES)
def test_every_error_is_one_that_may_pass(code: int) -> None:
    with pytest.raises(BrokerUnavailable, match=r"west\.a|principal|credentials|policy|queue|Kafka"):
        read_partitions(Client(KafkaError(code), {}), "a", prefix="west.")


def test_missing_permission_says_what_to_grant() -> None:
    with pytest.raises(NotPermitted, match=r"may not read west\.a: grant READ and DESCRIBE"):
        read_partitions(Client(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED), {}), "a", prefix="west.")


@pytest.mark.parametrize("error", [None, KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)])
def test_missing_topic_says_what_creates_it(error: KafkaError | None) -> None:
    with pytest.raises(TopicUnavailable, match=r"west\.a does not exist: run the topics job"):
        read_partitions(Client(error, {}), "a", prefix="west.")


def test_leader_election_is_no_missing_topic() -> None:
    with pytest.raises(BrokerUnavailable) as raised:
        read_partitions(Client(KafkaError(KafkaError.LEADER_NOT_AVAILABLE), {}), "a")
    assert type(raised.value) is BrokerUnavailable
