"""Meaning of Kafka's error codes: whether a record, the environment or this client is at fault, and what to do.

Most errors have nothing to do with the record that was being sent: the broker is away, a permission is missing, a
topic was deleted. Only `RECORD_ERRORS` say that the broker examined a record and refuses it, so that sending it again
cannot help. An error that is not listed there never blames a record.
"""

from __future__ import annotations

from typing import Final

from confluent_kafka import KafkaError

from shared.errors import (
    BrokerUnavailable,
    Fatal,
    Fenced,
    LoopwrightError,
    NotPermitted,
    Overloaded,
    Oversized,
    RefusedByBroker,
    TopicUnavailable,
)

OVERSIZED_ERRORS: Final = frozenset({"MSG_SIZE_TOO_LARGE", "RECORD_LIST_TOO_LARGE", "INVALID_MSG_SIZE"})
RECORD_ERRORS: Final = OVERSIZED_ERRORS | {
    "INVALID_MSG",  # CORRUPT_MESSAGE: the checksum or the contents are wrong
    "INVALID_RECORD",  # for instance without a key on a compacted topic
    "INVALID_TIMESTAMP",
    "_INVALID_DIFFERENT_RECORD",  # another record of the same batch is invalid
}
"""The errors with which a broker refuses a record."""
AUTHORIZATION_ERRORS: Final = frozenset(
    {
        "TOPIC_AUTHORIZATION_FAILED",
        "GROUP_AUTHORIZATION_FAILED",
        "CLUSTER_AUTHORIZATION_FAILED",
        "TRANSACTIONAL_ID_AUTHORIZATION_FAILED",
        "DELEGATION_TOKEN_AUTHORIZATION_FAILED",
    }
)
"""The principal lacks a permission. They pass as soon as it is granted."""
CREDENTIAL_ERRORS: Final = frozenset(
    {
        "_AUTHENTICATION",
        "SASL_AUTHENTICATION_FAILED",
        "UNSUPPORTED_SASL_MECHANISM",
        "ILLEGAL_SASL_STATE",
        "DELEGATION_TOKEN_EXPIRED",
        "UNACCEPTABLE_CREDENTIAL",
    }
)
TOPIC_ERRORS: Final = frozenset(
    {"UNKNOWN_TOPIC_OR_PART", "UNKNOWN_TOPIC_ID", "_UNKNOWN_TOPIC", "_UNKNOWN_PARTITION", "TOPIC_EXCEPTION"}
)
"""The topic or the partition does not exist, or no longer exists."""
EXPLAINED: Final = "Kafka at "
"""How the texts of `kafka_clients` begin that name the brokers and why they cannot be used."""
FENCED_ERRORS: Final = frozenset({"_FENCED", "PRODUCER_FENCED", "INVALID_PRODUCER_EPOCH"})
_GRANTS: Final = {
    "TOPIC_AUTHORIZATION_FAILED": "may not {action} {name}: grant {operation} and DESCRIBE on the topic",
    "GROUP_AUTHORIZATION_FAILED": "may not use the consumer group{group}: grant READ on the group",
    "TRANSACTIONAL_ID_AUTHORIZATION_FAILED": "may not use the transactional.id{identity}: grant WRITE and DESCRIBE on "
    "the transactional id",
    "CLUSTER_AUTHORIZATION_FAILED": "may not use the cluster: grant IDEMPOTENT_WRITE on the cluster",
    "DELEGATION_TOKEN_AUTHORIZATION_FAILED": "may not use this delegation token: grant DESCRIBE on the token",
}


def blames_record(error: KafkaError) -> bool:
    """Return whether the broker refused a record for what is in it. Any other error is retried."""
    return error.name() in RECORD_ERRORS


def describe_refusal(
    error: KafkaError, *, topic: str = "", reading: bool = False, group: str = "", identity: str = ""
) -> str | None:
    """Return what is not permitted and what to grant, or None if the error is of another kind.

    Args:
        error: The client's error.
        topic: Topic that was being read or written, if known.
        reading: Whether it was being read.
        group: Consumer group, if known.
        identity: The `transactional.id`, if known.

    """
    name = error.name()
    if name in AUTHORIZATION_ERRORS:
        return "the principal " + _GRANTS[name].format(
            action="read" if reading else "write to",
            name=topic or "one of its topics",
            operation="READ" if reading else "WRITE",
            group=f" {group}" if group else "",
            identity=f" {identity}" if identity else "",
        )
    if name in CREDENTIAL_ERRORS:
        text = (
            error.str()
            if error.str().startswith(EXPLAINED)
            else f"Kafka refuses the credentials: {error.str()}"
        )
        return f"{text}; check LOOPWRIGHT_KAFKA_CONFIG"
    if name == "POLICY_VIOLATION":
        return f"a policy of the broker forbids this: {error.str()}"
    return None


def to_error(error: KafkaError, *, topic: str = "", reading: bool = False) -> LoopwrightError:
    """Return the error of `shared/errors.py` that corresponds to a Kafka error.

    `topic` names the topic in the message; `reading` says that it was being read.
    """
    name, text = error.name(), error.str()
    if name in FENCED_ERRORS:
        return Fenced(f"another process has taken this identity: {text}")
    if name in OVERSIZED_ERRORS:
        return Oversized(f"the record exceeds the size limit of {topic or 'its topic'}: {text}")
    if name in RECORD_ERRORS:
        return RefusedByBroker(f"Kafka refuses the record for {topic or 'its topic'}: {name}: {text}")
    refusal = describe_refusal(error, topic=topic, reading=reading)
    if refusal is not None:
        return NotPermitted(refusal)
    if name in TOPIC_ERRORS:
        return TopicUnavailable(
            f"{topic or 'a topic'} does not exist ({text}): run the topics job "
            "(`python -m shared.adapters.topic_admin`)"
        )
    if name == "_QUEUE_FULL":
        return Overloaded("the queue of records to send is full: Kafka is slow or unavailable")
    if error.fatal():
        return Fatal(f"Kafka client: {text}")
    return BrokerUnavailable(text if text.startswith(EXPLAINED) else f"Kafka: {text} ({name})")
