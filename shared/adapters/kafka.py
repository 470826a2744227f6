"""Adapters of the ports `Publisher`, `TransactionalPublisher` and `LogReader` for Kafka (confluent-kafka).

librdkafka's settings: https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from shared.adapters.kafka_clients import build_consumer, build_producer
from shared.errors import (
    BrokerUnavailable,
    Fatal,
    Fenced,
    LoopwrightError,
    Misconfigured,
    Overloaded,
    Oversized,
)
from shared.kafka_connection import KafkaConnection
from shared.ports import Acked, Position
from shared.records import Output, Record
from shared.topics import MAX_MESSAGE_BYTES, TOPICS, may_write

POLL_RECORDS = 500
QUEUE_KB = 16_384
CONNECT_S = 30.0
QUIET = {"log_level": 2}
"""Only critical client logs: failed calls report errors themselves, without a line per reconnect."""


def producer_config(client_id: str) -> dict[str, Any]:
    """Return a producer configuration: durable, ordered, and partitioned like JVM clients."""
    return {
        "client.id": client_id,
        "acks": "all",
        "enable.idempotence": True,
        "partitioner": "murmur2_random",
        "compression.type": "lz4",
        "message.max.bytes": MAX_MESSAGE_BYTES,
        "queue.buffering.max.kbytes": QUEUE_KB,
        "linger.ms": 5,
        **QUIET,
    }


def to_error(error: KafkaError) -> LoopwrightError:
    """Return the error of `shared/errors.py` that corresponds to a Kafka error."""
    name, text = error.name(), error.str()
    if name in {"_FENCED", "PRODUCER_FENCED", "INVALID_PRODUCER_EPOCH"}:
        return Fenced(f"another process has taken this identity: {text}")
    if name == "MSG_SIZE_TOO_LARGE":
        return Oversized(f"the record exceeds the limit of a topic ({MAX_MESSAGE_BYTES} bytes): {text}")
    if name == "_QUEUE_FULL":
        return Overloaded("the queue of records to send is full: Kafka is slow or unavailable")
    if error.fatal():
        return Fatal(f"Kafka client: {text}")
    return BrokerUnavailable(f"Kafka: {text} ({name})")


def _check_writer(service: str, record: Output) -> None:
    if not may_write(service, record.topic):
        writers = ", ".join(sorted(TOPICS[record.topic].writers)) if record.topic in TOPICS else "none"
        raise Misconfigured(f"{service} may not write {record.topic}; its writers: {writers}")


def _arguments(record: Output) -> dict[str, Any]:
    arguments: dict[str, Any] = {"key": record.key, "value": record.value, "headers": list(record.headers)}
    if record.partition is not None:
        arguments["partition"] = record.partition
    return arguments


class KafkaPublisher:
    """`Publisher` with its own delivery thread. `timeout_s` limits the wait for an acknowledgement."""

    def __init__(self, kafka: KafkaConnection, service: str, *, timeout_s: float = 10.0) -> None:
        config = producer_config(service) | {"delivery.timeout.ms": round(timeout_s * 1000)}
        self._service = service
        self._producer = build_producer(kafka, config)
        self._open = True
        self._deliveries = threading.Thread(target=self._serve, name=f"{service}-deliveries", daemon=True)
        self._deliveries.start()

    def publish(self, record: Output) -> Future[Acked]:
        """Queue a record; see `Publisher.publish`."""
        _check_writer(self._service, record)
        future: Future[Acked] = Future()
        if not self._open:
            future.set_exception(BrokerUnavailable("this publisher is closed"))
            return future

        def delivered(error: KafkaError | None, message: Message) -> None:
            if not future.set_running_or_notify_cancel():
                return
            if error is not None:
                future.set_exception(to_error(error))
                return
            topic, partition, offset = message.topic(), message.partition(), message.offset()
            assert topic is not None and partition is not None and offset is not None
            future.set_result(Acked(topic, partition, offset))

        try:
            self._producer.produce(record.topic, **_arguments(record), on_delivery=delivered)
        except KafkaException as error:
            future.set_exception(to_error(error.args[0]))
        except BufferError:
            future.set_exception(
                Overloaded("the queue of records to send is full: Kafka is slow or unavailable")
            )
        return future

    def flush(self, timeout: float) -> int:
        """Wait for acknowledgements; return how many are missing."""
        return self._producer.flush(timeout)

    def close(self) -> None:
        """Flush within bounds and release the client."""
        self._producer.flush(5.0)
        self._open = False
        self._deliveries.join()

    def _serve(self) -> None:
        while self._open:
            self._producer.poll(0.1)


class KafkaTransactionalPublisher:
    """`TransactionalPublisher`. `identity` is the `transactional.id`: one live writer each."""

    def __init__(
        self, kafka: KafkaConnection, service: str, identity: str, *, timeout_s: float = 30.0
    ) -> None:
        self._service = service
        self._timeout_s = timeout_s
        self._producer = build_producer(
            kafka,
            producer_config(service) | {"transactional.id": identity, "transaction.timeout.ms": 10_000},
        )
        self._call(lambda: self._producer.init_transactions(timeout_s))

    def publish_all(self, records: Sequence[Output]) -> None:
        """Publish in one transaction; see `TransactionalPublisher.publish_all`."""
        for record in records:
            _check_writer(self._service, record)
        self._call(self._producer.begin_transaction)
        try:
            for record in records:
                self._producer.produce(record.topic, **_arguments(record))
            self._producer.commit_transaction(self._timeout_s)
        except KafkaException as error:
            cause = error.args[0]
            if cause.txn_requires_abort():
                self._call(lambda: self._producer.abort_transaction(self._timeout_s))
            raise to_error(cause) from error

    def close(self) -> None:
        """Flush within bounds and release the client."""
        self._producer.flush(5.0)

    def _call(self, call: Any) -> None:
        try:
            call()
        except KafkaException as error:
            raise to_error(error.args[0]) from error


class KafkaLogReader:
    """`LogReader` over whole topics, or over the given partitions of them.

    `starts` gives the next offset per partition; partitions without one are read from the beginning. If retention has
    deleted the record at a start, `poll` raises `Fatal`, because continuing would skip records.
    """

    def __init__(
        self,
        kafka: KafkaConnection,
        service: str,
        topics: Sequence[str],
        starts: Mapping[Position, int] | None = None,
        *,
        partitions: Collection[int] | None = None,
    ) -> None:
        self._consumer = build_consumer(
            kafka,
            {
                "client.id": service,
                "group.id": f"{service}-reader",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "error",
                "enable.partition.eof": True,
                "queued.max.messages.kbytes": QUEUE_KB,
                "fetch.wait.max.ms": 50,
                **QUIET,
            },
        )
        self._next: dict[Position, int] = dict(starts or {})
        self._unfinished: set[Position] = set()
        try:
            self._assign(topics, partitions)
        except KafkaException as error:
            self._consumer.close()
            raise to_error(error.args[0]) from error

    def _assign(self, topics: Sequence[str], wanted: Collection[int] | None) -> None:
        parts: list[Position] = []
        for topic in topics:
            found = self._consumer.list_topics(topic, timeout=CONNECT_S).topics[topic]
            if found.error is not None or not found.partitions:
                raise Misconfigured(
                    f"topic {topic} does not exist: run the topics job (`python -m shared.adapters.topic_admin`)"
                )
            parts += [(topic, p) for p in sorted(found.partitions) if wanted is None or p in wanted]
        self._unfinished = set(parts)
        self._consumer.assign(
            [TopicPartition(t, p, self._next.get((t, p), OFFSET_BEGINNING)) for t, p in parts]
        )

    def poll(self, timeout: float) -> list[Record]:
        """Return the next records; see `LogReader.poll`."""
        records = []
        first = self._consumer.poll(timeout)
        if first is None:
            return []
        for message in [first, *self._consumer.consume(POLL_RECORDS - 1, 0)]:
            record = self._take(message)
            if record is not None:
                records.append(record)
        return records

    def _take(self, message: Message) -> Record | None:
        error = message.error()
        if error is not None and error.name() == "_PARTITION_EOF":
            self._unfinished.discard((str(message.topic()), int(message.partition() or 0)))
            return None
        if error is not None and error.name() == "_AUTO_OFFSET_RESET":
            raise Fatal(f"cannot continue: the log no longer holds the start offset: {error.str()}")
        if error is not None:
            if error.fatal():
                raise to_error(error)
            return None
        record = to_record(message)
        self._next[(record.topic, record.partition)] = record.offset + 1
        return record

    def at_end(self) -> bool:
        """Return whether everything that was in the log at the start was returned."""
        return not self._unfinished

    def positions(self) -> dict[Position, int]:
        """Return the next offset per partition."""
        return dict(self._next)

    def close(self) -> None:
        """Flush within bounds and release the client."""
        self._consumer.close()


def to_record(message: Message) -> Record:
    """Convert a message without an error to a `Record`."""
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None and partition is not None and offset is not None
    # The client's stubs also allow str here; it always returns bytes.
    headers: Any = message.headers() or ()
    key: Any = message.key()
    value: Any = message.value()
    return Record(
        topic,
        partition,
        offset,
        message.timestamp()[1],
        key,
        value,
        tuple((name, content or b"") for name, content in headers),
    )
