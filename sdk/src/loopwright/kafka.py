"""Publisher for apps that write to Kafka directly instead of calling the feedback service (`loopwright[kafka]`).

    from loopwright.kafka import LoopPublisher

    with LoopPublisher() as publisher:
        sent = publisher.correct(response_id, "u-17", "Wellington is the capital.")
        publisher.flush()

Leaving the block waits for Kafka's acknowledgement of everything that was sent.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal

try:
    from confluent_kafka import KafkaError, KafkaException, Message, Producer
except ImportError as error:
    raise ImportError("loopwright.kafka needs confluent-kafka: pip install 'loopwright[kafka]'") from error

from loopwright.errors import NotDelivered, QueueFull
from loopwright.event_ids import new_event_id
from loopwright.feedback_kinds import FeedbackKind
from loopwright.records import KafkaRecord, Pseudonymiser, RecordFactory
from loopwright.wire import FeedbackValue, preference_value, without_none

SERVERS_VARIABLE: Final = "KAFKA_BOOTSTRAP_SERVERS"
NAMESPACE_VARIABLE: Final = "LOOPWRIGHT_NAMESPACE"
CONFIG_VARIABLE: Final = "LOOPWRIGHT_KAFKA_CONFIG"
KEY_VARIABLE: Final = "LOOPWRIGHT_PSEUDONYM_KEY"
LINE_VARIABLE: Final = "LOOPWRIGHT_LINE"
DEFAULT_SERVERS: Final = "127.0.0.1:9092"
DEFAULT_LINE: Final = "assistant"
_FIXED: Final[Mapping[str, Any]] = {
    "acks": "all",
    "enable.idempotence": True,
    "partitioner": "murmur2_random",
}
_ALIASES: Final = frozenset({"request.required.acks", "transactional.id"})
_POLL_S: Final = 0.1


class Delivery:
    """One record on its way to Kafka."""

    def __init__(self, producer: Producer, event_id: str | None, record: KafkaRecord) -> None:
        self._producer = producer
        self._error: KafkaError | None = None
        self._done = False
        self.event_id = event_id
        """Id of the feedback event; None for a response."""
        self.record = record
        """The record, without the namespace."""
        self.partition: int | None = None
        """Partition of the record, once it was acknowledged."""
        self.offset: int | None = None
        """Offset of the record, once it was acknowledged."""

    @property
    def done(self) -> bool:
        """Whether Kafka acknowledged the record or refused it."""
        return self._done

    def wait(self, timeout: float = 10.0) -> Delivery:
        """Wait until Kafka has acknowledged the record; return self.

        Raises:
            NotDelivered: Kafka refused the record, or did not acknowledge it within `timeout` seconds.

        """
        deadline = time.monotonic() + timeout
        while not self._done:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise NotDelivered(
                    f"Kafka did not acknowledge the record on {self.record.topic} within {timeout:g} s. Check that the "
                    "brokers are reachable, and send it again under the same id"
                )
            self._producer.poll(min(_POLL_S, remaining))
        if self._error is not None:
            raise _not_delivered(self.record, self._error)
        return self

    @property
    def failed(self) -> bool:
        """Whether Kafka refused the record, or did not acknowledge it within the delivery timeout."""
        return self._error is not None

    def settle(self, error: KafkaError | None, message: Message) -> None:
        """Note what became of the record; the publisher calls this."""
        self._error, self._done = error, True
        if error is None:
            self.partition, self.offset = message.partition(), message.offset()


class LoopPublisher:
    """Publishes responses and feedback to the topics of a deployment. Use it in one thread, and close it.

    Records are validated before they are sent, carry CloudEvents headers, and are keyed and partitioned like the
    services' own. Sending a record again under its id has no further effect. Methods return at once; Kafka's
    acknowledgement arrives later: wait for it with `Delivery.wait`, `flush` or `close`.

    Args:
        servers: Brokers as `host:port,...`. Default: `KAFKA_BOOTSTRAP_SERVERS`, else this machine.
        pseudonym_key: The deployment's key for pseudonyms of user ids. Default: `LOOPWRIGHT_PSEUDONYM_KEY`. With
            another key, an erasure would not find what this app sends.
        line: Line of the records. Default: `LOOPWRIGHT_LINE`, else `assistant`.
        namespace: Namespace of the deployment's topics. Default: `LOOPWRIGHT_NAMESPACE`, else none.
        config: Further librdkafka properties, such as TLS and SASL. Default: those in `LOOPWRIGHT_KAFKA_CONFIG` (the
            path of a file, or a JSON object).
        source: Name of the app, for the header `ce_source`.
        delivery_timeout: Seconds after which a record that was not acknowledged counts as not delivered.

    Raises:
        ValueError: No pseudonym key is given, or `config` sets a property that must not change.

    """

    def __init__(
        self,
        servers: str | None = None,
        *,
        pseudonym_key: str | bytes | None = None,
        line: str | None = None,
        namespace: str | None = None,
        config: Mapping[str, Any] | None = None,
        source: str = "sdk",
        delivery_timeout: float = 30.0,
    ) -> None:
        key = pseudonym_key or os.environ.get(KEY_VARIABLE)
        if not key:
            raise ValueError(
                f"no pseudonym key: pass pseudonym_key, or set {KEY_VARIABLE} to the deployment's"
            )
        space = os.environ.get(NAMESPACE_VARIABLE, "") if namespace is None else namespace
        self._prefix = f"{space}." if space else ""
        self._records = RecordFactory(
            line=line or os.environ.get(LINE_VARIABLE) or DEFAULT_LINE,
            source=source,
            pseudonymiser=Pseudonymiser(key),
        )
        properties = _read_config(os.environ.get(CONFIG_VARIABLE, "")) if config is None else dict(config)
        reserved = sorted(properties.keys() & (_FIXED.keys() | _ALIASES))
        if reserved:
            raise ValueError(
                f"{reserved[0]} must not be configured: the publisher sets it for durable records"
            )
        self._producer = Producer(
            {
                "bootstrap.servers": servers or os.environ.get(SERVERS_VARIABLE) or DEFAULT_SERVERS,
                "client.id": f"{self._prefix}sdk",
                "compression.type": "lz4",
                "linger.ms": 5,
                "log_level": 2,
                "delivery.timeout.ms": round(delivery_timeout * 1000),
            }
            | properties
            | dict(_FIXED)
        )
        self._waiting: set[Delivery] = set()
        self._first_failed: Delivery | None = None

    # --- feedback ---------------------------------------------------------------------------------------------------

    def send(
        self,
        response_id: str,
        user_id: str,
        kind: FeedbackKind,
        value: FeedbackValue,
        event_id: str | None = None,
        *,
        choice: int = 0,
        tags: Sequence[str] = (),
        occurred_at: datetime | None = None,
        line: str | None = None,
        traceparent: str | None = None,
    ) -> Delivery:
        """Send one feedback event.

        Args:
            response_id: The `id` of the chat completion.
            user_id: Your id of the user. Only a pseudonym is sent.
            kind: Kind of feedback.
            value: The content; see `FeedbackValue`.
            event_id: Your id of the event; the default is a new UUIDv7.
            choice: Index of the choice, if there are several.
            tags: Labels to store with the event.
            occurred_at: When the user gave the feedback; the default is the time at which Kafka stores it.
            line: Line of the response; the default is the publisher's.
            traceparent: W3C trace context to continue.

        Raises:
            InvalidRecord: The processor could not use the event.
            QueueFull: Too many records wait for Kafka.

        """
        event_id = event_id or new_event_id()
        record = self._records.feedback(
            response_id,
            user_id,
            kind,
            value,
            event_id,
            choice=choice,
            tags=tags,
            occurred_at=occurred_at,
            line=line,
            traceparent=traceparent,
            now=datetime.now(timezone.utc),
        )
        return self._produce(event_id, record)

    def thumbs_up(self, response_id: str, user_id: str, *, event_id: str | None = None) -> Delivery:
        """Send thumbs up; see `send`."""
        return self.send(response_id, user_id, "thumbs", "up", event_id)

    def thumbs_down(self, response_id: str, user_id: str, *, event_id: str | None = None) -> Delivery:
        """Send thumbs down; see `send`."""
        return self.send(response_id, user_id, "thumbs", "down", event_id)

    def rate(self, response_id: str, user_id: str, stars: int, *, event_id: str | None = None) -> Delivery:
        """Send a rating from 1 to 5; see `send`."""
        return self.send(response_id, user_id, "rating", stars, event_id)

    def correct(self, response_id: str, user_id: str, text: str, *, event_id: str | None = None) -> Delivery:
        """Send the answer as it should have been; see `send`."""
        return self.send(response_id, user_id, "correction", text, event_id)

    def comment(self, response_id: str, user_id: str, text: str, *, event_id: str | None = None) -> Delivery:
        """Send a remark; see `send`."""
        return self.send(response_id, user_id, "comment", text, event_id)

    def prefer(
        self,
        response_id: str,
        user_id: str,
        *,
        over: str | int | None = None,
        under: str | int | None = None,
        event_id: str | None = None,
    ) -> Delivery:
        """Send that the user prefers this answer to another one, or another one to it; see `send`."""
        return self.send(response_id, user_id, "preference", preference_value(over, under), event_id)

    def retract(
        self, response_id: str, user_id: str, retracted_event_id: str, *, event_id: str | None = None
    ) -> Delivery:
        """Retract an earlier event of the same user; see `send`."""
        return self.send(response_id, user_id, "retract", retracted_event_id, event_id)

    # --- responses --------------------------------------------------------------------------------------------------

    def record_response(
        self,
        response_id: str,
        messages: Sequence[Mapping[str, str]],
        text: str,
        *,
        version: str,
        user_id: str | None = None,
        finish_reason: str | None = None,
        status: Literal["completed", "failed", "cancelled"] = "completed",
        error: str | None = None,
        metadata: Mapping[str, str] | None = None,
        usage: Mapping[str, int] | None = None,
        latency_ms: float | None = None,
        created_at: datetime | None = None,
        line: str | None = None,
        traceparent: str | None = None,
    ) -> Delivery:
        """Record an answer that Loopwright did not generate, so that it can learn from feedback on it.

        Args:
            response_id: Your id of the answer.
            messages: The conversation, with `role` and `content` each.
            text: The answer.
            version: Your name for the model.
            user_id: Your id of the user who asked. Only a pseudonym is sent.
            finish_reason: Why the answer ended, for example `stop` or `length`.
            status: Whether the request succeeded.
            error: Why it failed.
            metadata: Up to 16 labels.
            usage: `prompt_tokens` and `completion_tokens`.
            latency_ms: Time from the request to the end of the answer, in milliseconds.
            created_at: When the model answered; the default is now.
            line: Line of the response; the default is the publisher's.
            traceparent: W3C trace context to continue.

        Raises:
            InvalidRecord: The processor could not use the response.
            QueueFull: Too many records wait for Kafka.

        """
        record = self._records.response(
            response_id,
            messages,
            [without_none({"index": 0, "text": text, "finish_reason": finish_reason})],
            version=version,
            user_id=user_id,
            status=status,
            error=error,
            metadata=metadata,
            usage=usage,
            latency_ms=latency_ms,
            created_at=created_at,
            line=line,
            traceparent=traceparent,
            now=datetime.now(timezone.utc),
        )
        return self._produce(None, record)

    # --- delivery ---------------------------------------------------------------------------------------------------

    def flush(self, timeout: float = 30.0) -> None:
        """Wait until Kafka has acknowledged everything that was sent.

        Raises:
            NotDelivered: Since the last call, a record was refused, or some are not acknowledged within `timeout`
                seconds. Those may still arrive; sending them again under their ids does no harm.

        """
        self._producer.flush(timeout)
        failed, self._first_failed = self._first_failed, None
        if failed is not None:
            failed.wait(0)
        if self._waiting:
            raise NotDelivered(
                f"Kafka did not acknowledge {len(self._waiting)} records within {timeout:g} s. Check that the brokers "
                "are reachable; the publisher keeps trying until its delivery timeout"
            )

    def close(self, timeout: float = 30.0) -> None:
        """Wait for outstanding acknowledgements, as `flush` does. The publisher must not be used afterwards."""
        self.flush(timeout)

    def __enter__(self) -> LoopPublisher:
        """Return the publisher."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the publisher. An error in the block takes precedence over records that were not delivered."""
        try:
            self.close()
        except NotDelivered:
            if error is None:
                raise

    def _produce(self, event_id: str | None, record: KafkaRecord) -> Delivery:
        delivery = Delivery(self._producer, event_id, record)
        try:
            self._producer.produce(
                self._prefix + record.topic,
                key=record.key,
                value=record.value,
                headers=list(record.headers),
                on_delivery=partial(self._settle, delivery),
            )
        except BufferError:
            raise QueueFull("too many records wait for Kafka: call flush and send this one again") from None
        except KafkaException as error:
            raise _not_delivered(record, error.args[0]) from error
        self._waiting.add(delivery)
        self._producer.poll(0)
        return delivery

    def _settle(self, delivery: Delivery, error: KafkaError | None, message: Message) -> None:
        self._waiting.discard(delivery)
        delivery.settle(error, message)
        if delivery.failed and self._first_failed is None:
            self._first_failed = delivery


def _not_delivered(record: KafkaRecord, error: KafkaError) -> NotDelivered:
    remedy = (
        "This publisher cannot send any more: create a new one, and send the record again under the same id"
        if error.fatal()
        else "Check that the topic exists and that this client may write to it"
    )
    return NotDelivered(
        f"Kafka did not accept the record on {record.topic}: {error.str()} ({error.name()}). {remedy}"
    )


def _read_config(source: str) -> dict[str, Any]:
    """Return the librdkafka properties in a JSON object, or in a file with one or with `key=value` lines."""
    text = source.strip()
    if text and not text.startswith("{"):
        text = Path(text).read_text(encoding="utf-8").strip()
    if text.startswith("{"):
        found = json.loads(text)
        return {str(name): value for name, value in found.items()}
    lines = [line.strip() for line in text.splitlines()]
    pairs = [line.partition("=") for line in lines if line and not line.startswith(("#", "!"))]
    return {name.strip(): value.strip() for name, _, value in pairs}
