"""Create the topics of `shared/topics.py` and verify P. Safe to run repeatedly.

Existing topics are changed only with `--apply`: their settings may differ on purpose, and a shorter retention deletes
records. Settings that differ are reported.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)
from tenacity import (
    Retrying,
    retry_if_exception_type,
    retry_if_result,
    stop_after_delay,
    wait_exponential,
    wait_fixed,
)

from shared.adapters.kafka import KafkaLogReader
from shared.adapters.kafka_clients import build_admin
from shared.adapters.kafka_errors import AUTHORIZATION_ERRORS, to_error
from shared.errors import (
    BrokerUnavailable,
    LoopwrightError,
    Misconfigured,
    NotPermitted,
    TopicUnavailable,
)
from shared.kafka_connection import KafkaConnection
from shared.ports import Position
from shared.settings import Settings, load
from shared.topics import TOPICS, Topic

WAIT_S = 60.0
CALL_S = 10.0


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting of an existing topic that differs from `shared/topics.py`."""

    topic: str
    setting: str
    found: str | None
    wanted: str

    def __str__(self) -> str:
        return f"{self.topic}: {self.setting} is {self.found or 'not set'}, expected {self.wanted}"

    @property
    def stops_the_engine(self) -> bool:
        """Whether the processor and the rollout refuse to run with this difference."""
        topic = TOPICS[self.topic]
        if topic.is_changelog:
            return self.setting == "cleanup.policy"
        return self.setting == "message.timestamp.type" and topic.append_time


def create_topics(kafka: KafkaConnection, p: int) -> list[str]:
    """Create missing topics and return their names. Waits up to a minute for a broker.

    Raises:
        BrokerUnavailable: if no broker answers.
        Misconfigured: if an existing topic has a different number of partitions.

    """
    admin = build_admin(kafka, {"client.id": "topics-job"})
    return _retrying(WAIT_S)(_create, admin, kafka.prefix, p)


def check_partitions(kafka: KafkaConnection, p: int) -> None:
    """Verify that all topics exist with the right number of partitions.

    Raises:
        BrokerUnavailable: if no broker answers.
        NotPermitted: if the broker refuses the credentials, or this service may not see a topic.
        TopicUnavailable: if topics are missing.
        Misconfigured: if P differs.

    """
    admin = build_admin(kafka, {"client.id": "partition-check"})
    existing = _existing(admin)
    missing = sorted(TOPICS.keys() - existing.keys())
    for topic in missing[:1]:
        # The list of all topics leaves out those that this service may not see; asked for one, the broker says so.
        error = _metadata(admin, topic).topics[topic].error
        if error is not None and error.name() in AUTHORIZATION_ERRORS:
            raise to_error(error, topic=kafka.prefix + topic, reading=True)
        raise TopicUnavailable(
            f"topics missing: {', '.join(kafka.prefix + name for name in missing)}; run "
            "`python -m shared.adapters.topic_admin`"
        )
    _check_p(existing, p)


class CheckedReaders:
    """Opens readers of the log. The topics are verified before, each time until they are as they should be.

    A call raises what `check_partitions` and `KafkaLogReader` raise.
    """

    def __init__(self, kafka: KafkaConnection, service: str, p: int) -> None:
        self._kafka = kafka
        self._service = service
        self._p = p
        self._checked = False

    def __call__(
        self,
        topics: Sequence[str],
        starts: Mapping[Position, int] | None = None,
        *,
        partitions: Collection[int] | None = None,
    ) -> KafkaLogReader:
        """Return a reader; see `KafkaLogReader`. The caller closes it."""
        if not self._checked:
            check_partitions(self._kafka, self._p)
            self._checked = True
        return KafkaLogReader(self._kafka, self._service, topics, starts, partitions=partitions)


def differing_settings(kafka: KafkaConnection) -> list[Difference]:
    """Return the settings of existing topics that differ. Raises `BrokerUnavailable`."""
    admin = build_admin(kafka, {"client.id": "topics-job"})
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in sorted(_existing(admin))]
    if not resources:
        return []
    found = admin.describe_configs(resources, request_timeout=CALL_S)
    return [
        difference
        for resource in resources
        for difference in differences(
            TOPICS[resource.name],
            {
                name: entry.value
                for name, entry in _result(
                    found[resource], "DESCRIBE_CONFIGS", kafka.prefix + resource.name
                ).items()
            },
        )
    ]


def apply_settings(kafka: KafkaConnection, wanted: list[Difference]) -> None:
    """Apply these settings and no others. Raises `BrokerUnavailable`."""
    admin = build_admin(kafka, {"client.id": "topics-job"})
    changes = [
        ConfigResource(
            ResourceType.TOPIC,
            topic,
            incremental_configs=[
                ConfigEntry(change.setting, change.wanted, incremental_operation=AlterConfigOpType.SET)
                for change in wanted
                if change.topic == topic
            ],
        )
        for topic in sorted({change.topic for change in wanted})
    ]
    if changes:
        for resource, future in admin.incremental_alter_configs(changes, request_timeout=CALL_S).items():
            _result(future, "ALTER_CONFIGS", kafka.prefix + resource.name)


def still_stopping(kafka: KafkaConnection, wait_s: float = CALL_S) -> list[Difference]:
    """Return the differences that stop the engine after `apply_settings`. Brokers take a moment to apply settings."""
    wait = Retrying(
        retry=retry_if_result(bool),
        stop=stop_after_delay(wait_s),
        wait=wait_fixed(0.2),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else [],
    )
    return wait(lambda: [each for each in differing_settings(kafka) if each.stops_the_engine])


def differences(topic: Topic, found: Mapping[str, str | None]) -> list[Difference]:
    """Return the differences between a topic's declared and actual settings. The order of policies is irrelevant."""
    return [
        Difference(topic.name, name, found.get(name), wanted)
        for name, wanted in topic.broker_config().items()
        if sorted((found.get(name) or "").split(",")) != sorted(wanted.split(","))
    ]


def _result(future: Any, operation: str, topic: str) -> Any:
    """Return the result of an operation on a topic; `operation` is the permission that it needs."""
    try:
        return future.result(CALL_S + 5)
    except KafkaException as error:
        if error.args[0].name() == "TOPIC_AUTHORIZATION_FAILED":
            raise NotPermitted(
                f"the principal lacks a permission: grant {operation} on the topic {topic}"
            ) from error
        raise to_error(error.args[0], topic=topic) from error


def _retrying(seconds: float) -> Retrying:
    return Retrying(
        retry=retry_if_exception_type(BrokerUnavailable),
        stop=stop_after_delay(seconds),
        wait=wait_exponential(multiplier=0.2, max=3),
        reraise=True,
    )


def _create(admin: AdminClient, prefix: str, p: int) -> list[str]:
    existing = _existing(admin)
    _check_p(existing, p)
    brokers = len(_metadata(admin).brokers)
    missing = [_new(topic, p, brokers) for name, topic in TOPICS.items() if name not in existing]
    created = []
    for name, future in admin.create_topics(missing).items() if missing else ():
        try:
            _result(future, "CREATE", prefix + name)
            created.append(name)
        except BrokerUnavailable as error:
            if not _already_exists(error.__cause__):
                raise
    return created


def _already_exists(cause: BaseException | None) -> bool:
    return isinstance(cause, KafkaException) and cause.args[0].name() == "TOPIC_ALREADY_EXISTS"


def _new(topic: Topic, p: int, brokers: int) -> NewTopic:
    """Replicate three times if there are three brokers. With one broker, a lost disk is lost data."""
    copies = min(3, brokers)
    config = topic.broker_config() | {"min.insync.replicas": str(max(1, copies - 1))}
    return NewTopic(topic.name, num_partitions=topic.partitions(p), replication_factor=copies, config=config)


def _metadata(admin: AdminClient, topic: str | None = None) -> Any:
    try:
        return admin.list_topics(topic, timeout=10)
    except KafkaException as error:
        raise to_error(error.args[0]) from error


def _existing(admin: AdminClient) -> dict[str, int]:
    return {name: len(found.partitions) for name, found in _metadata(admin).topics.items() if name in TOPICS}


def _check_p(existing: dict[str, int], p: int) -> None:
    for name, found in existing.items():
        wanted = TOPICS[name].partitions(p)
        if found != wanted:
            raise Misconfigured(
                f"topic {name} has {found} partitions, but LOOPWRIGHT_PARTITIONS requires {wanted}: P is fixed when a "
                "deployment is created; set LOOPWRIGHT_PARTITIONS to its original value"
            )


def main() -> None:
    """Create topics; report or apply differing settings."""
    parser = argparse.ArgumentParser(
        prog="python -m shared.adapters.topic_admin",
        description="Create missing topics; report settings that differ.",
    )
    parser.add_argument(
        "--apply",
        action="store_true",
        help="also apply the declared settings to existing topics that differ",
    )
    options = parser.parse_args()
    try:
        settings = load(Settings)
        created = create_topics(settings.kafka, settings.partitions)
        differing = differing_settings(settings.kafka)
        if options.apply:
            apply_settings(settings.kafka, differing)
            stopping = still_stopping(settings.kafka)
        else:
            stopping = [difference for difference in differing if difference.stops_the_engine]
    except LoopwrightError as error:
        sys.exit(f"topics: {error}")
    sys.stdout.write("".join(f"{line}\n" for line in report_lines(created, differing, applied=options.apply)))
    if stopping:
        sys.exit(stop_message(stopping, applied=options.apply))


def report_lines(created: list[str], differing: list[Difference], *, applied: bool) -> list[str]:
    """Return the lines that the job prints."""
    lines = [f"topics: {len(created)} created, {len(TOPICS) - len(created)} already existed"]
    lines += [f"topics: {difference}{'; changed' if applied else ''}" for difference in differing]
    if differing and not applied:
        lines.append(
            "topics: no setting was changed; `python -m shared.adapters.topic_admin --apply` applies the declared ones "
            "(a shorter retention deletes records)"
        )
    return lines


def stop_message(stopping: list[Difference], *, applied: bool) -> str:
    """Return the error for differences with which the processor or the rollout refuses to run."""
    remedy = (
        "a broker did not take the setting: check the permissions (ALTER_CONFIGS) and the broker's own policies"
        if applied
        else "run `python -m shared.adapters.topic_admin --apply`"
    )
    return (
        f"topics: the processor and the rollout refuse to run with {'; '.join(map(str, stopping))}; {remedy}"
    )


if __name__ == "__main__":
    main()
