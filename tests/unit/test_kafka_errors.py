"""Which Kafka errors blame a record, and what the others ask a person to do. Over every error code of the client."""

from __future__ import annotations

import threading

import pytest
from confluent_kafka import KafkaError

from shared.adapters.kafka_errors import (
    AUTHORIZATION_ERRORS,
    CREDENTIAL_ERRORS,
    FENCED_ERRORS,
    OVERSIZED_ERRORS,
    RECORD_ERRORS,
    TOPIC_ERRORS,
    blames_record,
    describe_refusal,
    to_error,
)
from shared.errors import (
    Fenced,
    NotPermitted,
    Oversized,
    RefusedByBroker,
    Rejected,
    Retryable,
    TopicUnavailable,
)
from shared.kafka_connection import KafkaConnection
from shared.stream.transaction import TransactionalProducer

CODES = sorted(
    value
    for name, value in vars(KafkaError).items()
    if isinstance(value, int) and name.replace("_", "").isupper() and value != KafkaError.NO_ERROR
)
NAMES = {KafkaError(code).name() for code in CODES}
BLAMES_A_RECORD = {
    "MSG_SIZE_TOO_LARGE",
    "RECORD_LIST_TOO_LARGE",
    "INVALID_MSG_SIZE",
    "INVALID_MSG",
    "INVALID_RECORD",
    "INVALID_TIMESTAMP",
    "_INVALID_DIFFERENT_RECORD",
}
"""Apart from the code under test. A new entry needs a reason: its records leave the stream."""


def test_every_name_in_the_tables_is_one_of_the_client() -> None:
    assert len(CODES) > 150
    tables = RECORD_ERRORS | AUTHORIZATION_ERRORS | CREDENTIAL_ERRORS | TOPIC_ERRORS | FENCED_ERRORS
    assert tables <= NAMES
    assert not RECORD_ERRORS & (AUTHORIZATION_ERRORS | CREDENTIAL_ERRORS | TOPIC_ERRORS | FENCED_ERRORS)


def offline_producer() -> TransactionalProducer:
    settings = {"transactional.id": "t", "transaction.timeout.ms": 4000, "log_level": 0}
    connection = KafkaConnection("127.0.0.1:1")
    return TransactionalProducer(connection, settings, threading.Event(), lambda _reason: None)


@pytest.mark.parametrize("code", CODES, ids=lambda code: str(KafkaError(code).name()))
def test_only_the_listed_errors_blame_a_record(code: int) -> None:
    error = KafkaError(code)
    expected = error.name() in BLAMES_A_RECORD
    assert blames_record(error) is expected
    assert isinstance(to_error(error), Rejected) is expected
    producer = offline_producer()
    aborted = producer.abort(error)
    assert aborted.caused_by_record is expected
    assert aborted.oversized is (error.name() in OVERSIZED_ERRORS)
    assert not (aborted.lasting and aborted.caused_by_record)


@pytest.mark.parametrize("code", CODES, ids=lambda code: str(KafkaError(code).name()))
def test_an_environment_error_is_retried_with_its_remedy(code: int) -> None:
    error = KafkaError(code)
    translated = to_error(error, topic="training.batches")
    if error.name() in AUTHORIZATION_ERRORS | CREDENTIAL_ERRORS | {"POLICY_VIOLATION"}:
        assert isinstance(translated, NotPermitted)
        assert describe_refusal(error) is not None
    elif error.name() in TOPIC_ERRORS:
        assert isinstance(translated, TopicUnavailable)
        assert "topics job" in str(translated)
    elif error.name() in FENCED_ERRORS:
        assert isinstance(translated, Fenced)
    elif not blames_record(error):
        assert isinstance(translated, Retryable)


def test_a_missing_permission_names_the_topic_and_the_grant() -> None:
    refused = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)
    writing = describe_refusal(refused, topic="training.batches")
    assert writing == (
        "the principal may not write to training.batches: grant WRITE and DESCRIBE on the topic"
    )
    reading = to_error(refused, topic="model.rollout", reading=True)
    assert str(reading) == "the principal may not read model.rollout: grant READ and DESCRIBE on the topic"


def test_what_is_at_fault_in_a_record_is_told_apart() -> None:
    assert isinstance(to_error(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)), Oversized)
    assert isinstance(to_error(KafkaError(KafkaError.INVALID_RECORD)), RefusedByBroker)


def test_the_topic_is_taken_from_the_clients_text() -> None:
    producer = offline_producer()
    text = "ProduceRequest for eu.training.batches [3] with 2 message(s) failed: Broker: Topic authorization failed"
    aborted = producer.abort(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED, text))
    assert aborted.lasting
    assert "may not write to eu.training.batches: grant" in str(aborted)
