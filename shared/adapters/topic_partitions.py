"""Look up the partitions of a topic, and say why they cannot be known."""

from __future__ import annotations

from typing import Any, Final, Protocol

from shared.adapters.kafka_errors import TOPIC_ERRORS, to_error
from shared.errors import BrokerUnavailable, LoopwrightError, TopicUnavailable

LOOKUP_S: Final = 5.0
"""How long a broker may take to answer."""


class _Client(Protocol):
    def list_topics(self, topic: str | None = None, timeout: float = -1) -> Any: ...


def read_partitions(
    client: _Client, topic: str, *, prefix: str = "", timeout_s: float = LOOKUP_S
) -> list[int]:
    """Return the partitions of a topic in ascending order; there is at least one.

    Nothing that a broker says of a topic stops a service: permissions are granted, topics are created and leaders are
    elected while it runs. So every error is one that a later call may not meet.

    Args:
        client: a client of `kafka_clients`.
        topic: the logical name.
        prefix: the namespace's prefix, for texts.
        timeout_s: how long the broker may take.

    Raises:
        NotPermitted: if the principal may not see the topic, or may not connect.
        TopicUnavailable: if the topic does not exist.
        BrokerUnavailable: if the broker does not know at the moment.
        KafkaException: if it does not answer.

    """
    found = client.list_topics(topic, timeout=timeout_s).topics[topic]
    if found.error is not None:
        raise _to_retryable(found.error, prefix + topic)
    if not found.partitions:
        raise _missing(prefix + topic)
    return sorted(found.partitions)


def _to_retryable(error: Any, name: str) -> LoopwrightError:
    if error.name() in TOPIC_ERRORS:
        return _missing(name)
    translated = to_error(error, topic=name, reading=True)
    if isinstance(translated, BrokerUnavailable):
        return translated
    return BrokerUnavailable(f"Kafka cannot describe {name} at the moment: {error.str()} ({error.name()})")


def _missing(name: str) -> TopicUnavailable:
    return TopicUnavailable(
        f"topic {name} does not exist: run the topics job (`python -m shared.adapters.topic_admin`)"
    )
