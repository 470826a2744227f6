"""Adapters of the ports `Publisher`, `TransactionalPublisher` and `LogReader` for Kafka (confluent-kafka).

librdkafka's settings: https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import structlog
from confluent_kafka import (
    OFFSET_BEGINNING,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from shared.adapters.kafka_clients import build_consumer, build_producer
from shared.adapters.kafka_errors import AUTHORIZATION_ERRORS, CREDENTIAL_ERRORS, TOPIC_ERRORS, to_error
from shared.adapters.topic_partitions import read_partitions
from shared.errors import (
    BrokerUnavailable,
    Fatal,
    Fenced,
    LoopwrightError,
    Misconfigured,
    NotPermitted,
    Overloaded,
    TopicUnavailable,
)
from shared.kafka_connection import KafkaConnection
from shared.ports import Acked, Position
from shared.records import Output, Record
from shared.telemetry import PUBLISHERS_REPLACED
from shared.topics import MAX_MESSAGE_BYTES, TOPICS, may_write

log = structlog.get_logger(__name__)
POLL_RECORDS = 500
QUEUE_KB = 16_384
CONNECT_S = 30.0
PROBLEM_S = 10.0
"""How long a publisher reports a failure. It then counts as able again, so that readiness lets it try."""
REPLACE_S = 1.0
"""Shortest time between two replacements of a client."""
UNREADABLE = AUTHORIZATION_ERRORS | CREDENTIAL_ERRORS | TOPIC_ERRORS
"""Errors with which a reader no longer follows its topics. They last until a person acts."""
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
    """`Publisher` with its own delivery thread. `timeout_s` limits the wait for an acknowledgement.

    Records wait up to `linger_ms` for others, which then share a request.

    A client that became fatal (for instance because a broker lost the end of its log) never delivers again, so it is
    replaced. Records that it had not delivered fail with `BrokerUnavailable`: publish them again.
    """

    def __init__(
        self, kafka: KafkaConnection, service: str, *, timeout_s: float = 10.0, linger_ms: int = 5
    ) -> None:
        self._kafka = kafka
        self._config = producer_config(service) | {
            "delivery.timeout.ms": round(timeout_s * 1000),
            "linger.ms": linger_ms,
        }
        self._service = service
        self._lock = threading.Lock()
        """Held while a record is queued, so that none is queued in a client that was just replaced."""
        self._broken = threading.Event()
        self._producer = self._new_client()
        self._problem: tuple[str, float] | None = None
        self._open = True
        self._deliveries = threading.Thread(target=self._serve, name=f"{service}-deliveries", daemon=True)
        self._deliveries.start()

    @property
    def problem(self) -> str | None:
        """Why records fail at the moment, or None. It lasts `PROBLEM_S` after the newest failure.

        Only failures that a person has to end count, and the loss of the client; not an unreachable broker.
        """
        problem = self._problem
        return problem[0] if problem is not None and time.monotonic() < problem[1] else None

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
                future.set_exception(self._noted(error, record.topic))
                return
            topic, partition, offset = message.topic(), message.partition(), message.offset()
            assert topic is not None and partition is not None and offset is not None
            self._problem = None
            future.set_result(Acked(topic, partition, offset))

        try:
            with self._lock:
                self._producer.produce(record.topic, **_arguments(record), on_delivery=delivered)
        except KafkaException as error:
            future.set_exception(self._noted(error.args[0], record.topic))
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
        with suppress(KafkaException):  # a fatal client has nothing to flush
            self._producer.flush(5.0)
        self._open = False
        self._deliveries.join()

    def _new_client(self) -> Producer:
        return build_producer(self._kafka, self._config | {"error_cb": self._note_client_error})

    def _note_client_error(self, error: KafkaError) -> None:
        if error.fatal() or error.name() == "_FATAL":
            self._broken.set()
        elif error.name() in CREDENTIAL_ERRORS:
            # Records only time out for this reason.
            self._note_problem(str(to_error(error)))

    def _noted(self, error: KafkaError, topic: str = "") -> LoopwrightError:
        """Note an error, and return the one to raise for a record. A fatal one is the client's, not the record's."""
        self._note_client_error(error)
        translated = to_error(error, topic=self._kafka.prefix + topic)
        if isinstance(translated, NotPermitted | TopicUnavailable):
            self._note_problem(str(translated))
        elif error.name() in ("_FATAL", "_PURGE_QUEUE", "_PURGE_INFLIGHT") or isinstance(translated, Fatal):
            translated = BrokerUnavailable(
                f"the Kafka client failed and is being replaced ({error.str()}): publish the record again"
            )
            self._note_problem(str(translated))
        return translated

    def _note_problem(self, text: str) -> None:
        self._problem = (text, time.monotonic() + PROBLEM_S)

    def _serve(self) -> None:
        while self._open:
            try:
                self._producer.poll(0.1)
            except KafkaException as error:  # the client is fatal
                self._noted(error.args[0])
            if self._broken.is_set():
                self._replace()
                # A new client meets the same error if a permission is missing.
                time.sleep(REPLACE_S)

    def _replace(self) -> None:
        log.error("kafka_client_replaced", service=self._service)
        PUBLISHERS_REPLACED.labels(self._service).inc()
        self._broken.clear()
        with self._lock:
            broken, self._producer = self._producer, self._new_client()
        broken.purge()
        with suppress(KafkaException):
            broken.flush(1.0)  # calls back for the records that were purged


class KafkaTransactionalPublisher:
    """`TransactionalPublisher`. `identity` is the `transactional.id`: one live writer each.

    If the outcome of a transaction is unknown, or the client became fatal, the next call connects a new client. That
    first settles the transaction.
    """

    def __init__(
        self, kafka: KafkaConnection, service: str, identity: str, *, timeout_s: float = 30.0
    ) -> None:
        self._service = service
        self._timeout_s = timeout_s
        self._kafka = kafka
        self._config = producer_config(service) | {
            "transactional.id": identity,
            "transaction.timeout.ms": 10_000,
        }
        self._producer: Producer | None = self._connect()

    def publish_all(self, records: Sequence[Output]) -> None:
        """Publish in one transaction; see `TransactionalPublisher.publish_all`."""
        for record in records:
            _check_writer(self._service, record)
        if self._producer is None:
            self._producer = self._connect()
        producer = self._producer
        try:
            producer.begin_transaction()
            deadline = time.monotonic() + self._timeout_s
            for record in records:
                self._produce(producer, record, deadline)
            producer.commit_transaction(self._timeout_s)
        except KafkaException as raised:
            cause: KafkaError = raised.args[0]
            self._abort(producer, cause)
            raise self._to_raise(cause) from raised
        except BaseException:
            self._abort(producer, None)
            raise

    def close(self) -> None:
        """Flush within bounds and release the client."""
        if self._producer is not None:
            self._producer.flush(5.0)

    def _connect(self) -> Producer:
        producer = build_producer(self._kafka, self._config)
        try:
            producer.init_transactions(self._timeout_s)
        except KafkaException as error:
            raise self._to_raise(error.args[0]) from error
        return producer

    def _produce(self, producer: Producer, record: Output, deadline: float) -> None:
        """Queue a record, waiting while the client's queue is full."""
        while True:
            try:
                producer.produce(record.topic, **_arguments(record))
            except BufferError:
                if time.monotonic() > deadline:
                    raise Overloaded(
                        "the queue of records to send is full: Kafka is slow or unavailable"
                    ) from None
                producer.poll(0.05)
            else:
                return

    def _abort(self, producer: Producer, cause: KafkaError | None) -> None:
        """Abort the transaction. If that is impossible or the outcome is unknown, give the client up."""
        if cause is not None and not cause.txn_requires_abort():
            # A commit that timed out may still succeed, so neither abort nor use this client again.
            self._give_up(producer)
            return
        try:
            producer.abort_transaction(self._timeout_s)
        except KafkaException:
            self._give_up(producer)

    def _give_up(self, producer: Producer) -> None:
        producer.purge()
        self._producer = None

    @staticmethod
    def _to_raise(cause: KafkaError) -> LoopwrightError:
        error = to_error(cause)
        if isinstance(error, Fatal) and not isinstance(error, Fenced):
            return BrokerUnavailable(f"the Kafka client failed and is replaced with the next call: {error}")
        return error


class KafkaLogReader:
    """`LogReader` over whole topics, or over the given partitions of them.

    `starts` gives the next offset per partition; partitions without one are read from the beginning. If retention has
    deleted the record at a start, `poll` raises `Fatal`, because continuing would skip records.

    If a topic cannot be read (no permission, deleted), `poll` raises `NotPermitted` or `TopicUnavailable`; call it
    again. `at_end` is False until the end of every partition was seen again.
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
        self._prefix = kafka.prefix
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
        self._assigned: list[Position] = []
        self._unfinished: set[Position] = set()
        self._unreadable: LoopwrightError | None = None
        try:
            self._assign(topics, partitions)
        except BaseException as error:
            self._consumer.close()
            if isinstance(error, KafkaException):
                raise to_error(error.args[0]) from error
            raise

    def _assign(self, topics: Sequence[str], wanted: Collection[int] | None) -> None:
        parts: list[Position] = []
        for topic in topics:
            found = read_partitions(self._consumer, topic, prefix=self._prefix, timeout_s=CONNECT_S)
            parts += [(topic, p) for p in found if wanted is None or p in wanted]
        self._assigned = parts
        self._read_from_next()

    def _read_from_next(self) -> None:
        """Read every partition from its next record. Until its end was seen again, it counts as unfinished."""
        self._unfinished = set(self._assigned)
        self._consumer.assign(
            [TopicPartition(t, p, self._next.get((t, p), OFFSET_BEGINNING)) for t, p in self._assigned]
        )

    def poll(self, timeout: float) -> list[Record]:
        """Return the next records; see `LogReader.poll`."""
        if self._unreadable is not None:
            # The client reports an error once, and then neither its repetition nor its end: so begin again.
            error, self._unreadable = self._unreadable, None
            self._read_from_next()
            raise error
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
            position = (str(message.topic()), int(message.partition() or 0))
            self._unfinished.discard(position)
            # Aborted records and markers of transactions before the end are read, too.
            self._next[position] = max(self._next.get(position, 0), int(message.offset() or 0))
            return None
        if error is not None and error.name() == "_AUTO_OFFSET_RESET":
            raise Fatal(f"cannot continue: the log no longer holds the start offset: {error.str()}")
        if error is not None:
            topic = f"{self._prefix}{message.topic()}" if message.topic() else ""
            if error.fatal():
                raise to_error(error, topic=topic, reading=True)
            if error.name() in UNREADABLE:
                self._unreadable = to_error(error, topic=topic, reading=True)
            return None
        record = to_record(message)
        self._next[(record.topic, record.partition)] = record.offset + 1
        return record

    def at_end(self) -> bool:
        """Return whether everything that was in the log at the start was returned; see `LogReader.at_end`."""
        return not self._unfinished and self._unreadable is None

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
