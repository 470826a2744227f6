"""Build Kafka clients. Nothing else in a deployment constructs one, so all of them connect in the same way.

A client takes and returns logical names: it adds the namespace to topics, consumer groups, transactional ids and client
ids on the way to the broker, and removes it from what the broker returns, messages included. Without a namespace the
methods that carry records are confluent-kafka's own. Texts of errors keep the broker's names, which an operator needs.

librdkafka's settings: https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from shared.errors import Misconfigured
from shared.kafka_connection import KafkaConnection

Settings = Mapping[str, Any]
Client = TypeVar("Client")
_set_topic: Callable[[Message, str], None] = Message.set_topic  # type: ignore[attr-defined]  # not in the stubs
_PREFIXED_SETTINGS = ("group.id", "transactional.id", "client.id")
_QUIET = {"log_level": 2}
"""Critical messages only: failed calls report errors themselves, without a line per reconnect."""
_UNREACHABLE = frozenset({"_TRANSPORT", "_ALL_BROKERS_DOWN", "_TIMED_OUT"})
_REFUSALS = {"_AUTHENTICATION": "refuses the credentials", "_SSL": "cannot be reached over TLS"}


def build_consumer(kafka: KafkaConnection, settings: Settings) -> Consumer:
    """Return a consumer. Raises `Misconfigured` if librdkafka refuses a property."""
    return _build(_NamespacedConsumer if kafka.namespace else _Consumer, kafka, settings)


def build_producer(kafka: KafkaConnection, settings: Settings) -> Producer:
    """Return a producer. Raises `Misconfigured` if librdkafka refuses a property."""
    return _build(_NamespacedProducer if kafka.namespace else _Producer, kafka, settings)


def build_admin(kafka: KafkaConnection, settings: Settings) -> AdminClient:
    """Return a client for topics and their settings. Raises `Misconfigured` if librdkafka refuses a property."""
    return _build(_NamespacedAdmin if kafka.namespace else _Admin, kafka, settings)


def _build(
    client: Callable[[KafkaConnection, Settings], Client], kafka: KafkaConnection, settings: Settings
) -> Client:
    try:
        return client(kafka, settings)
    except KafkaException as error:
        raise Misconfigured(f"LOOPWRIGHT_KAFKA_CONFIG: {error.args[0].str()}") from error


def client_settings(kafka: KafkaConnection, settings: Settings) -> dict[str, Any]:
    """Return the librdkafka configuration of a client: its own settings with the deployment's prefix and properties."""
    prefixed = {name: kafka.prefix + settings[name] for name in _PREFIXED_SETTINGS if name in settings}
    return {"bootstrap.servers": kafka.servers, **_QUIET, **settings, **prefixed, **kafka.properties}


class _TopicNames(dict[str, str]):
    """Broker's name -> logical name. Names are added when they are first looked up."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self._prefix = prefix

    def __missing__(self, name: str) -> str:
        self[name] = logical = name.removeprefix(self._prefix)
        return logical


def _renamed(rename: Callable[[str], str], partitions: Iterable[TopicPartition]) -> list[TopicPartition]:
    return [TopicPartition(rename(each.topic), each.partition, each.offset) for each in partitions]


class _Refusals:
    """Remembers why brokers refuse connections. Requests that fail for this reason report only a timeout."""

    def __init__(self, servers: str, error_cb: Callable[[KafkaError], None] | None) -> None:
        self._servers = servers
        self._error_cb = error_cb
        self._newest: KafkaError | None = None

    def __call__(self, error: KafkaError) -> None:
        if error.name() in _REFUSALS:
            self._newest = error
        if self._error_cb is not None:
            self._error_cb(error)

    def clear(self) -> None:
        """Forget the refusal, because a broker has answered."""
        self._newest = None

    def explain(self, raised: KafkaException) -> KafkaException:
        """Return the exception to raise in place of `raised`."""
        error, newest = raised.args[0], self._newest
        if newest is None or error.name() not in _UNREACHABLE:
            return raised
        return KafkaException(
            KafkaError(newest.code(), f"Kafka at {self._servers} {_REFUSALS[newest.name()]}: {newest.str()}")
        )


class _Producer(Producer):
    def __init__(self, kafka: KafkaConnection, settings: Settings) -> None:
        self._refusals = _Refusals(kafka.servers, settings.get("error_cb"))
        super().__init__(client_settings(kafka, settings) | {"error_cb": self._refusals})

    def init_transactions(self, timeout: float = -1) -> None:
        try:
            super().init_transactions(timeout)
        except KafkaException as error:
            self.poll(0)  # runs `error_cb`
            raise self._refusals.explain(error) from error
        self._refusals.clear()


class _NamespacedProducer(_Producer):
    def __init__(self, kafka: KafkaConnection, settings: Settings) -> None:
        super().__init__(kafka, settings)
        self._prefix = kafka.prefix
        self._logical = _TopicNames(kafka.prefix)

    def produce(  # type: ignore[override]
        self,
        topic: str,
        value: Any = None,
        key: Any = None,
        partition: int = -1,
        callback: Any = None,
        on_delivery: Any = None,
        **options: Any,
    ) -> None:
        delivered = on_delivery or callback
        if delivered is not None:
            options["on_delivery"] = self._with_logical_name(delivered)
        super().produce(self._prefix + topic, value, key, partition, **options)

    def produce_batch(self, topic: str, *arguments: Any, **options: Any) -> int:
        for name in ("callback", "on_delivery"):
            if options.get(name) is not None:
                options[name] = self._with_logical_name(options[name])
        return super().produce_batch(self._prefix + topic, *arguments, **options)

    def send_offsets_to_transaction(
        self, positions: list[TopicPartition], group_metadata: Any, timeout: float = -1
    ) -> None:
        super().send_offsets_to_transaction(
            _renamed(self._prefix.__add__, positions), group_metadata, timeout
        )

    def _with_logical_name(self, delivered: Callable[[KafkaError | None, Message], None]) -> Any:
        def call(error: KafkaError | None, message: Message) -> None:
            topic = message.topic()
            if topic is not None:
                _set_topic(message, self._logical[topic])
            delivered(error, message)

        return call


class _Consumer(Consumer):
    def __init__(self, kafka: KafkaConnection, settings: Settings) -> None:
        self._refusals = _Refusals(kafka.servers, settings.get("error_cb"))
        self._reads = False
        super().__init__(client_settings(kafka, settings) | {"error_cb": self._refusals})

    def list_topics(self, topic: str | None = None, timeout: float = -1) -> Any:
        try:
            found = super().list_topics(topic, timeout) if topic else super().list_topics(timeout=timeout)
        except KafkaException as error:
            if not self._reads:
                super().poll(0)  # runs `error_cb`; while the client reads, this could return a record
            raise self._refusals.explain(error) from error
        self._refusals.clear()
        return found

    def subscribe(self, topics: list[str], **callbacks: Any) -> None:  # type: ignore[override]
        self._reads = True
        super().subscribe(topics, **callbacks)

    def assign(self, partitions: list[TopicPartition]) -> None:
        self._reads = True
        super().assign(partitions)

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        self._reads = True
        super().incremental_assign(partitions)


class _NamespacedConsumer(_Consumer):
    def __init__(self, kafka: KafkaConnection, settings: Settings) -> None:
        super().__init__(kafka, settings)
        self._prefix = kafka.prefix
        self._physical = kafka.prefix.__add__
        self._logical = _TopicNames(kafka.prefix)

    def poll(self, timeout: float = -1) -> Message | None:
        message = super().poll(timeout)
        if message is not None:
            topic = message.topic()
            if topic is not None:
                _set_topic(message, self._logical[topic])
        return message

    def consume(self, num_messages: int = 1, timeout: float = -1) -> list[Message]:
        messages, logical = super().consume(num_messages, timeout), self._logical
        for message in messages:
            topic = message.topic()
            if topic is not None:
                _set_topic(message, logical[topic])
        return messages

    def subscribe(self, topics: list[str], **callbacks: Any) -> None:  # type: ignore[override]
        super().subscribe(
            [self._prefix + topic for topic in topics],
            **{name: self._with_logical_names(callback) for name, callback in callbacks.items() if callback},
        )

    def _with_logical_names(self, callback: Callable[[Consumer, list[TopicPartition]], None]) -> Any:
        def call(_: Consumer, partitions: list[TopicPartition]) -> None:
            callback(self, self._to_logical(partitions))

        return call

    def _to_logical(self, partitions: Iterable[TopicPartition]) -> list[TopicPartition]:
        return _renamed(self._logical.__getitem__, partitions)

    def _to_physical(self, partitions: Iterable[TopicPartition]) -> list[TopicPartition]:
        return _renamed(self._physical, partitions)

    def list_topics(self, topic: str | None = None, timeout: float = -1) -> Any:
        return _logical_metadata(
            super().list_topics(self._prefix + topic if topic else None, timeout), self._prefix
        )

    def assign(self, partitions: list[TopicPartition]) -> None:
        super().assign(self._to_physical(partitions))

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        super().incremental_assign(self._to_physical(partitions))

    def incremental_unassign(self, partitions: list[TopicPartition]) -> None:
        super().incremental_unassign(self._to_physical(partitions))

    def assignment(self) -> list[TopicPartition]:
        return self._to_logical(super().assignment())

    def pause(self, partitions: list[TopicPartition]) -> None:
        super().pause(self._to_physical(partitions))

    def resume(self, partitions: list[TopicPartition]) -> None:
        super().resume(self._to_physical(partitions))

    def seek(self, partition: TopicPartition) -> None:
        super().seek(*self._to_physical([partition]))

    def position(self, partitions: list[TopicPartition]) -> list[TopicPartition]:
        return self._answers(super().position(self._to_physical(partitions)))

    def committed(self, partitions: list[TopicPartition], timeout: float = -1) -> list[TopicPartition]:
        return self._answers(super().committed(self._to_physical(partitions), timeout))

    def offsets_for_times(
        self, partitions: list[TopicPartition], timeout: float = -1
    ) -> list[TopicPartition]:
        return self._answers(super().offsets_for_times(self._to_physical(partitions), timeout))

    def _answers(self, partitions: Sequence[TopicPartition]) -> list[TopicPartition]:
        """Return what the broker answered. Raises `KafkaException` for an error, which a new object cannot hold."""
        for each in partitions:
            if each.error is not None:
                raise KafkaException(each.error)
        return self._to_logical(partitions)

    def get_watermark_offsets(
        self, partition: TopicPartition, timeout: float = -1, cached: bool = False
    ) -> tuple[int, int]:
        return super().get_watermark_offsets(self._to_physical([partition])[0], timeout, cached)

    def commit(self, *, offsets: list[TopicPartition], asynchronous: bool = True) -> Any:  # type: ignore[override]
        committed = super().commit(offsets=self._to_physical(offsets), asynchronous=asynchronous)  # type: ignore[call-overload]
        return None if committed is None else self._answers(committed)


class _Admin(AdminClient):
    def __init__(self, kafka: KafkaConnection, settings: Settings) -> None:
        self._refusals = _Refusals(kafka.servers, settings.get("error_cb"))
        super().__init__(client_settings(kafka, settings) | {"error_cb": self._refusals})

    def list_topics(self, topic: str | None = None, timeout: float = -1) -> Any:
        try:
            found = super().list_topics(topic, timeout) if topic else super().list_topics(timeout=timeout)
        except KafkaException as error:
            self.poll(0)  # runs `error_cb`
            raise self._refusals.explain(error) from error
        self._refusals.clear()
        return found


class _NamespacedAdmin(_Admin):
    def __init__(self, kafka: KafkaConnection, settings: Settings) -> None:
        super().__init__(kafka, settings)
        self._prefix = kafka.prefix

    def list_topics(self, topic: str | None = None, timeout: float = -1) -> Any:
        return _logical_metadata(
            super().list_topics(self._prefix + topic if topic else None, timeout), self._prefix
        )

    def create_topics(self, new_topics: list[NewTopic], **options: Any) -> Any:  # type: ignore[override]
        renamed = [
            NewTopic(
                self._prefix + each.topic,
                num_partitions=each.num_partitions,
                replication_factor=each.replication_factor,
                config=each.config,
            )
            for each in new_topics
        ]
        return self._by_logical_name(super().create_topics(renamed, **options))

    def delete_topics(self, topics: list[str], **options: Any) -> Any:  # type: ignore[override]
        return self._by_logical_name(
            super().delete_topics([self._prefix + topic for topic in topics], **options)
        )

    def describe_topics(self, topics: TopicCollection, **options: Any) -> Any:  # type: ignore[override]
        renamed = TopicCollection([self._prefix + topic for topic in topics.topic_names])
        return self._by_logical_name(super().describe_topics(renamed, **options))

    def describe_consumer_groups(self, group_ids: list[str], **options: Any) -> Any:  # type: ignore[override]
        return self._by_logical_name(
            super().describe_consumer_groups([self._prefix + group for group in group_ids], **options)
        )

    def describe_configs(self, resources: list[ConfigResource], **options: Any) -> Any:  # type: ignore[override]
        return self._by_logical_resource(
            super().describe_configs([self._physical(each) for each in resources], **options)
        )

    def incremental_alter_configs(self, resources: list[ConfigResource], **options: Any) -> Any:  # type: ignore[override]
        return self._by_logical_resource(
            super().incremental_alter_configs([self._physical(each) for each in resources], **options)
        )

    def _physical(self, resource: ConfigResource) -> ConfigResource:
        if resource.restype != ResourceType.TOPIC:
            return resource
        return ConfigResource(
            resource.restype,
            self._prefix + resource.name,
            incremental_configs=resource.incremental_configs,
        )

    def _by_logical_name(self, answers: Mapping[str, Any]) -> dict[str, Any]:
        return {name.removeprefix(self._prefix): answer for name, answer in answers.items()}

    def _by_logical_resource(self, answers: Mapping[ConfigResource, Any]) -> dict[ConfigResource, Any]:
        return {
            ConfigResource(each.restype, each.name.removeprefix(self._prefix)): answer
            for each, answer in answers.items()
        }


def _logical_metadata(metadata: Any, prefix: str) -> Any:
    """Rename the topics of this deployment in the broker's answer, and remove all others."""
    metadata.topics = {
        name.removeprefix(prefix): topic for name, topic in metadata.topics.items() if name.startswith(prefix)
    }
    for name, topic in metadata.topics.items():
        topic.topic = name
    return metadata
