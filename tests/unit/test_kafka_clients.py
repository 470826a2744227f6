"""The Kafka adapters when a client fails: it is replaced, its records are not lost silently, and readiness knows."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from shared.adapters import kafka
from shared.adapters.kafka import KafkaLogReader, KafkaPublisher, KafkaTransactionalPublisher
from shared.errors import BrokerUnavailable, Fenced, NotPermitted, Overloaded, TopicUnavailable
from shared.kafka_connection import KafkaConnection
from shared.ports import Acked
from shared.records import Output

NOWHERE = KafkaConnection("nowhere:1")
RECORD = Output("feedback.events", b"k", b"v")
FATAL = KafkaError(KafkaError._FATAL, "the broker lost the end of its log", fatal=True)


class FakeMessage:
    """Message with a position, or with an error."""

    def __init__(self, offset: int = 0, error: KafkaError | None = None, topic: str = RECORD.topic) -> None:
        self._offset, self._error, self._topic = offset, error, topic

    def topic(self) -> str:
        return self._topic

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def error(self) -> KafkaError | None:
        return self._error

    def timestamp(self) -> tuple[int, int]:
        return 2, 1_700_000_000_000

    def key(self) -> bytes:
        return b"k"

    def value(self) -> bytes:
        return b"v"

    def headers(self) -> None:
        return None


class FakeProducer:
    """Client of librdkafka: delivers on `poll`, or fails every record with `failure`."""

    made: list[FakeProducer]
    failures: list[KafkaError | None]

    def __init__(self, config: dict[str, Any]) -> None:
        self.queue: list[Callable[[KafkaError | None, FakeMessage], None]] = []
        self.failure = self.failures.pop(0) if self.failures else None
        self.full = 0
        self.calls: list[str] = []
        self.commit_error: KafkaError | None = None
        self.made.append(self)

    def produce(self, _topic: str, *, on_delivery: Any = None, **_arguments: Any) -> None:
        if self.full:
            self.full -= 1
            raise BufferError
        self.queue.append(on_delivery)
        self.calls.append("produce")

    def poll(self, _timeout: float) -> int:
        time.sleep(0.001)
        if self.failure is None or not self.failure.fatal():
            self._deliver(self.failure)
        elif self.queue:  # a fatal client reports it with the first record and keeps the others
            self.queue.pop(0)(self.failure, FakeMessage())
        return 0

    def purge(self) -> None:
        self.calls.append("purge")
        self.failure = KafkaError(KafkaError._PURGE_QUEUE)

    def flush(self, _timeout: float) -> int:
        self._deliver(self.failure)
        return 0

    def _deliver(self, error: KafkaError | None) -> None:
        queue, self.queue = self.queue, []
        for delivered in queue:
            if delivered is not None:
                delivered(error, FakeMessage())

    def init_transactions(self, _timeout: float) -> None:
        self.calls.append("init")

    def begin_transaction(self) -> None:
        self.calls.append("begin")

    def commit_transaction(self, _timeout: float) -> None:
        self.calls.append("commit")
        if self.commit_error is not None:
            raise KafkaException(self.commit_error)

    def abort_transaction(self, _timeout: float) -> None:
        self.calls.append("abort")


@pytest.fixture
def producers(monkeypatch: pytest.MonkeyPatch) -> type[FakeProducer]:
    FakeProducer.made, FakeProducer.failures = [], []
    monkeypatch.setattr(kafka, "build_producer", lambda _kafka, config: FakeProducer(config))
    return FakeProducer


def failure_of(future: Future[Acked]) -> BaseException | None:
    return future.exception(10)


def test_a_fatal_client_is_replaced_and_its_records_can_be_sent_again(producers: type[FakeProducer]) -> None:
    producers.failures = [FATAL]
    publisher = KafkaPublisher(NOWHERE, "feedback")
    futures = [publisher.publish(RECORD) for _ in range(3)]
    assert {type(failure_of(future)) for future in futures} == {BrokerUnavailable}  # an API answers 503
    assert "publish the record again" in str(failure_of(futures[0]))
    assert publisher.problem is not None
    deadline = time.monotonic() + 10
    while len(producers.made) < 2:
        assert time.monotonic() < deadline, "the client was not replaced"
        time.sleep(0.01)
    assert publisher.publish(RECORD).result(10) == Acked("feedback.events", 0, 0)
    assert publisher.problem is None
    publisher.close()


def test_a_missing_permission_is_a_problem_until_a_record_arrives(producers: type[FakeProducer]) -> None:
    producers.failures = [KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)]
    publisher = KafkaPublisher(NOWHERE, "feedback")
    error = failure_of(publisher.publish(RECORD))
    assert isinstance(error, NotPermitted)
    assert publisher.problem == str(error)
    assert "feedback.events: grant WRITE" in str(error)
    producers.made[0].failure = None
    publisher.publish(RECORD).result(10)
    assert publisher.problem is None
    assert len(producers.made) == 1, "a permission is no reason for a new client"
    publisher.close()


def test_a_problem_is_forgotten_so_that_readiness_lets_it_try(
    producers: type[FakeProducer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka, "PROBLEM_S", 0.05)
    producers.failures = [KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)]
    publisher = KafkaPublisher(NOWHERE, "feedback")
    failure_of(publisher.publish(RECORD))
    time.sleep(0.1)
    assert publisher.problem is None
    publisher.close()


def test_a_transaction_waits_for_the_queue_and_then_commits(producers: type[FakeProducer]) -> None:
    publisher = KafkaTransactionalPublisher(NOWHERE, "feedback", "id")
    producers.made[0].full = 2
    publisher.publish_all([RECORD, RECORD])
    assert producers.made[0].calls == ["init", "begin", "produce", "produce", "commit"]


def test_a_full_queue_leaves_no_open_transaction(producers: type[FakeProducer]) -> None:
    publisher = KafkaTransactionalPublisher(NOWHERE, "feedback", "id", timeout_s=0.05)
    producers.made[0].full = 10_000
    with pytest.raises(Overloaded):
        publisher.publish_all([RECORD])
    assert producers.made[0].calls[-1] == "abort"
    producers.made[0].full = 0
    publisher.publish_all([RECORD])
    assert producers.made[0].calls[-1] == "commit"


@pytest.mark.parametrize(
    "error", [FATAL, KafkaError(KafkaError._TIMED_OUT, "commit", retriable=True)], ids=["fatal", "undecided"]
)
def test_a_client_in_doubt_is_replaced_before_the_next_transaction(
    producers: type[FakeProducer], error: KafkaError
) -> None:
    publisher = KafkaTransactionalPublisher(NOWHERE, "feedback", "id")
    producers.made[0].commit_error = error
    with pytest.raises(BrokerUnavailable):
        publisher.publish_all([RECORD])
    assert "abort" not in producers.made[0].calls
    publisher.publish_all([RECORD])
    assert producers.made[1].calls == ["init", "begin", "produce", "commit"]


def test_a_fenced_transactional_publisher_stays_fenced(producers: type[FakeProducer]) -> None:
    publisher = KafkaTransactionalPublisher(NOWHERE, "feedback", "id")
    producers.made[0].commit_error = KafkaError(KafkaError._FENCED, "taken over", fatal=True)
    with pytest.raises(Fenced):
        publisher.publish_all([RECORD])


class FakeConsumer:
    """Consumer of one partition that returns what a test lines up, and notes each assignment."""

    messages: list[FakeMessage]
    assigned: list[int]

    def __init__(self, _config: dict[str, Any]) -> None:
        pass

    def list_topics(self, topic: str, timeout: float) -> Any:
        found = type("Topic", (), {"error": None, "partitions": {0: None}})
        return type("Metadata", (), {"topics": {topic: found}})

    def assign(self, partitions: list[Any]) -> None:
        self.assigned.append(partitions[0].offset)

    def poll(self, _timeout: float) -> FakeMessage | None:
        return self.messages.pop(0) if self.messages else None

    def consume(self, _limit: int, _timeout: float) -> list[FakeMessage]:
        return []

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("name", "raised"),
    [
        ("TOPIC_AUTHORIZATION_FAILED", NotPermitted),
        ("SASL_AUTHENTICATION_FAILED", NotPermitted),
        ("UNKNOWN_TOPIC_OR_PART", TopicUnavailable),
    ],
)
def test_a_reader_that_cannot_read_says_so_and_continues_later(
    monkeypatch: pytest.MonkeyPatch, name: str, raised: type[Exception]
) -> None:
    monkeypatch.setattr(kafka, "build_consumer", lambda _kafka, config: FakeConsumer(config))
    end = FakeMessage(1, KafkaError(KafkaError._PARTITION_EOF))
    FakeConsumer.messages, FakeConsumer.assigned = [FakeMessage(0), end], []
    reader = KafkaLogReader(NOWHERE, "console", [RECORD.topic])
    assert [record.offset for record in reader.poll(0)] == [0]
    reader.poll(0)
    assert reader.at_end()
    FakeConsumer.messages = [FakeMessage(0, KafkaError(getattr(KafkaError, name)))]
    assert reader.poll(0) == []
    assert not reader.at_end()
    with pytest.raises(raised):
        reader.poll(0)
    assert not reader.at_end(), "until the end was seen again"
    FakeConsumer.messages = [FakeMessage(1), FakeMessage(2, KafkaError(KafkaError._PARTITION_EOF))]
    assert [record.offset for record in reader.poll(0)] == [1]
    reader.poll(0)
    assert reader.at_end()
    assert len(FakeConsumer.assigned) == 2
    assert reader.positions() == {(RECORD.topic, 0): 2}
