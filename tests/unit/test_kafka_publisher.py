"""A publisher replaces a client that cannot recover."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from shared.adapters import kafka
from shared.adapters.kafka import KafkaPublisher
from shared.errors import BrokerUnavailable
from shared.kafka_connection import KafkaConnection
from shared.records import Output

RECORD = Output("feedback.events", b"k", b"v")
FATAL_CODES = (
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER,
    KafkaError.UNKNOWN_PRODUCER_ID,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError._FATAL,
    KafkaError._STATE,
)


class Message:
    def topic(self) -> str:
        return RECORD.topic

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return 7


class Client:
    """Delivers at the next poll; with `fatal`, every call raises it instead."""

    def __init__(self, fatal: KafkaError | None) -> None:
        self._fatal = fatal
        self._queued: list[Callable[[KafkaError | None, Any], None]] = []

    def _check(self) -> None:
        if self._fatal is not None:
            raise KafkaException(self._fatal)

    def produce(self, topic: str, *, on_delivery: Callable[[KafkaError | None, Any], None], **_: Any) -> None:
        self._check()
        self._queued.append(on_delivery)

    def poll(self, timeout: float) -> int:
        self._check()
        queued, self._queued = self._queued, []
        for delivered in queued:
            delivered(None, Message())
        return len(queued)

    def flush(self, timeout: float) -> int:
        return self.poll(timeout)

    def purge(self) -> None:
        self._queued.clear()


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> list[Client]:
    """Clients in the order in which a publisher uses them; the last one serves for all later ones."""
    clients: list[Client] = []
    monkeypatch.setattr(kafka, "REPLACE_S", 0.01)
    monkeypatch.setattr(
        kafka, "build_producer", lambda *_: clients.pop(0) if len(clients) > 1 else clients[0]
    )
    return clients


@pytest.mark.parametrize("code", FATAL_CODES)
@pytest.mark.parametrize("failures", [1, 3])
def test_delivers_after_fatal_errors(clients: list[Client], code: int, failures: int) -> None:
    clients += [Client(KafkaError(code, "failed for good", fatal=True)) for _ in range(failures)]
    clients.append(Client(None))
    publisher = KafkaPublisher(KafkaConnection("unused"), "feedback")
    retrying = Retrying(
        retry=retry_if_exception_type(BrokerUnavailable), wait=wait_fixed(0.01), stop=stop_after_delay(10)
    )
    assert retrying(lambda: publisher.publish(RECORD).result(10)).offset == 7
    publisher.close()


def test_says_what_to_grant_and_goes_on_when_it_is_granted(clients: list[Client]) -> None:
    refused = KafkaError(KafkaError.CLUSTER_AUTHORIZATION_FAILED, "no", fatal=True)
    clients.append(Client(refused))
    publisher = KafkaPublisher(KafkaConnection("unused"), "feedback")
    with pytest.raises(BrokerUnavailable, match="grant IDEMPOTENT_WRITE"):
        publisher.publish(RECORD).result(10)
    assert publisher.problem is not None and "grant IDEMPOTENT_WRITE" in publisher.problem
    clients[0] = Client(None)
    retrying = Retrying(
        retry=retry_if_exception_type(BrokerUnavailable), wait=wait_fixed(0.01), stop=stop_after_delay(10)
    )
    assert retrying(lambda: publisher.publish(RECORD).result(10)).offset == 7
    assert publisher.problem is None
    publisher.close()


def test_closes_while_the_client_is_fatal(clients: list[Client]) -> None:
    clients.append(Client(KafkaError(KafkaError._STATE, "failed for good", fatal=True)))
    KafkaPublisher(KafkaConnection("unused"), "feedback").close()
