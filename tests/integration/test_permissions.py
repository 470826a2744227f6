"""Permissions that are revoked and granted again while the engine and the adapters run, on a broker with ACLs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from shared.adapters.kafka import KafkaLogReader, KafkaPublisher
from shared.adapters.topic_admin import create_topics
from shared.errors import NotPermitted
from shared.kafka_connection import KafkaConnection
from shared.records import Output
from shared.stream.engine import Engine
from tests.brokers import own_kafka
from tests.integration.stream_rig import (
    Rig,
    as_records,
    counting_step,
    drained,
    events,
    running,
    until,
    violations,
)

ACLS = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": "true",
}
PRINCIPAL = "User:ANONYMOUS"


@pytest.fixture(scope="module")
def guarded_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with own_kafka(tmp_path_factory.mktemp("guarded"), ACLS) as address:
        yield address


@contextmanager
def revoked(kafka: str, kind: ResourceType, name: str, operation: AclOperation) -> Iterator[None]:
    """Take a permission away, and give it back at the end of the block."""
    admin = AdminClient({"bootstrap.servers": kafka})
    where = (kind, name, ResourcePatternType.LITERAL, PRINCIPAL, "*", operation, AclPermissionType.DENY)
    for future in admin.create_acls([AclBinding(*where)]).values():
        future.result(30)
    try:
        yield
    finally:
        for future in admin.delete_acls([AclBindingFilter(*where)]).values():
            future.result(30)


@pytest.mark.parametrize(
    ("kind", "resource", "operation", "reason"),
    [
        (ResourceType.TOPIC, "out", AclOperation.WRITE, "may not write to"),
        (ResourceType.TOPIC, "a", AclOperation.READ, "may not read"),
        (ResourceType.GROUP, "", AclOperation.READ, "may not use the consumer group"),
        (ResourceType.TRANSACTIONAL_ID, "-one", AclOperation.WRITE, "may not use the transactional.id"),
    ],
)
def test_revoked_permission_is_named_and_costs_no_record(
    guarded_kafka: str, fresh: str, kind: ResourceType, resource: str, operation: AclOperation, reason: str
) -> None:
    rig = Rig(guarded_kafka, fresh).create()
    name = f"{rig.name}.{resource}" if kind is ResourceType.TOPIC else f"{rig.name}{resource}"
    sent = events(100, 20)
    engine = Engine(rig.config(), counting_step(rig.out))
    with running(engine):
        rig.send(rig.a, as_records(sent))
        until(drained(engine, rig), "the first records", 40)
        with revoked(guarded_kafka, kind, name, operation):
            more = events(100, 20, "late")
            rig.send(rig.b, as_records(more))
            until(lambda: engine.state == "waiting" and reason in engine.reason, f"{reason!r}", 40)
            assert "grant" in engine.reason
            assert not engine.ready
        until(drained(engine, rig), "the rest", 60)
        until(lambda: engine.ready, "readiness")
    assert rig.read(rig.dead) == []
    assert violations(rig, sent | more) == []


def test_publisher_and_reader_name_a_revoked_permission_and_recover(guarded_kafka: str) -> None:
    connection = KafkaConnection(guarded_kafka)
    create_topics(connection, 1)
    topic = "feedback.events"
    publisher = KafkaPublisher(connection, "feedback")
    publisher.publish(Output(topic, b"k", b"1")).result(30)
    reader = KafkaLogReader(connection, "console", [topic])
    values = []
    while not reader.at_end():
        values += [record.value for record in reader.poll(0.2)]
    with revoked(guarded_kafka, ResourceType.TOPIC, topic, AclOperation.ALL):
        error = publisher.publish(Output(topic, b"k", b"2")).exception(30)
        assert isinstance(error, NotPermitted)
        assert publisher.problem == str(error)
        with pytest.raises(NotPermitted, match=r"may not read feedback\.events: grant READ"):
            deque((reader.poll(0.2) for _ in range(100)), maxlen=0)
        assert not reader.at_end()
    until(lambda: publisher.publish(Output(topic, b"k", b"3")).exception(30) is None, "writing", 40)
    assert publisher.problem is None

    def is_read() -> bool:
        try:
            values.extend(record.value for record in reader.poll(0.2))
        except NotPermitted:
            return False
        return b"3" in values and reader.at_end()

    until(is_read, "reading", 40)
    assert values == [b"1", b"3"]
    reader.close()
    publisher.close()
