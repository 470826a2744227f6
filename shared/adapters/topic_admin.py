"""Creates the topics of `shared/topics.py`, and checks P. Safe to run again.

What exists is changed only where that is asked for (`--apply`): other settings may be meant, and a shorter retention
removes records. Settings that differ are reported.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
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
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from shared.adapters.kafka import translate
from shared.errors import BrokerUnavailable, LoopwrightError, Misconfigured
from shared.settings import Settings, load
from shared.topics import TOPICS, Topic

WAIT_S = 60.0
CALL_S = 10.0


@dataclass(frozen=True, slots=True)
class Difference:
    """One setting of an existing topic that is not what `shared/topics.py` says."""

    topic: str
    setting: str
    found: str | None
    wanted: str

    def told(self) -> str:
        return f"{self.topic}: {self.setting} is {self.found or 'not set'}, wanted {self.wanted}"


def create_topics(servers: str, p: int) -> list[str]:
    """Creates what is missing, waiting up to a minute for a broker. Returns the names created.

    Raises `BrokerUnavailable`, or `Misconfigured` where an existing topic has another number of partitions.
    """
    admin = AdminClient({"bootstrap.servers": servers, "client.id": "topics-job"})
    return _patient(WAIT_S)(_create, admin, p)


def check_partitions(servers: str, p: int, *, wait_s: float = 0.0) -> None:
    """What every service does at start. Raises `Misconfigured` (missing topic, other P), or `BrokerUnavailable` where
    no broker answered for `wait_s` seconds."""
    admin = AdminClient({"bootstrap.servers": servers, "client.id": "partition-check"})
    existing = _patient(wait_s)(_existing, admin)
    missing = sorted(TOPICS.keys() - existing.keys())
    if missing:
        raise Misconfigured(
            f"topics missing: {', '.join(missing)}; run `python -m shared.adapters.topic_admin`"
        )
    _refuse_other_p(existing, p)


def differing_settings(servers: str) -> list[Difference]:
    """Settings of the topics that are there. Raises `BrokerUnavailable`."""
    admin = AdminClient({"bootstrap.servers": servers, "client.id": "topics-job"})
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in sorted(_existing(admin))]
    if not resources:
        return []
    found = admin.describe_configs(resources, request_timeout=CALL_S)
    return [
        difference
        for resource in resources
        for difference in differences(
            TOPICS[resource.name],
            {name: entry.value for name, entry in _result(found[resource]).items()},
        )
    ]


def apply_settings(servers: str, wanted: list[Difference]) -> None:
    """Sets these, and no other setting of their topics. Raises `BrokerUnavailable`."""
    admin = AdminClient({"bootstrap.servers": servers, "client.id": "topics-job"})
    changes = [
        ConfigResource(
            ResourceType.TOPIC,
            topic,
            incremental_configs=[
                ConfigEntry(one.setting, one.wanted, incremental_operation=AlterConfigOpType.SET)
                for one in wanted
                if one.topic == topic
            ],
        )
        for topic in sorted({one.topic for one in wanted})
    ]
    if changes:
        for future in admin.incremental_alter_configs(changes, request_timeout=CALL_S).values():
            _result(future)


def differences(topic: Topic, found: Mapping[str, str | None]) -> list[Difference]:
    """Pure. A list of policies is the same in any order."""
    return [
        Difference(topic.name, name, found.get(name), wanted)
        for name, wanted in topic.broker_config().items()
        if sorted((found.get(name) or "").split(",")) != sorted(wanted.split(","))
    ]


def _result(future: Any) -> Any:
    try:
        return future.result(CALL_S + 5)
    except KafkaException as error:
        raise translate(error.args[0]) from error


def _patient(seconds: float) -> Retrying:
    return Retrying(
        retry=retry_if_exception_type(BrokerUnavailable),
        stop=stop_after_delay(seconds),
        wait=wait_exponential(multiplier=0.2, max=3),
        reraise=True,
    )


def _create(admin: AdminClient, p: int) -> list[str]:
    existing = _existing(admin)
    _refuse_other_p(existing, p)
    brokers = len(_metadata(admin).brokers)
    missing = [_new(topic, p, brokers) for name, topic in TOPICS.items() if name not in existing]
    created = []
    for name, future in admin.create_topics(missing).items() if missing else ():
        try:
            future.result()
            created.append(name)
        except KafkaException as error:
            if error.args[0].name() != "TOPIC_ALREADY_EXISTS":
                raise translate(error.args[0]) from error
    return created


def _new(topic: Topic, p: int, brokers: int) -> NewTopic:
    """Three copies where there are three brokers; with one broker a lost disk is lost data, and the docs say so."""
    copies = min(3, brokers)
    config = topic.broker_config() | {"min.insync.replicas": str(max(1, copies - 1))}
    return NewTopic(topic.name, num_partitions=topic.partitions(p), replication_factor=copies, config=config)


def _metadata(admin: AdminClient) -> Any:
    try:
        return admin.list_topics(timeout=10)
    except KafkaException as error:
        raise translate(error.args[0]) from error


def _existing(admin: AdminClient) -> dict[str, int]:
    return {name: len(found.partitions) for name, found in _metadata(admin).topics.items() if name in TOPICS}


def _refuse_other_p(existing: dict[str, int], p: int) -> None:
    for name, found in existing.items():
        wanted = TOPICS[name].partitions(p)
        if found != wanted:
            raise Misconfigured(
                f"topic {name} has {found} partitions, this deployment says {wanted}: "
                "P is fixed when a deployment is made; set LOOPWRIGHT_PARTITIONS to what it was made with"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m shared.adapters.topic_admin", description="Creates what topics are missing."
    )
    parser.add_argument(
        "--apply",
        action="store_true",
        help="also change settings of existing topics that differ from shared/topics.py",
    )
    asked = parser.parse_args()
    try:
        settings = load(Settings)
        servers = settings.kafka_bootstrap_servers
        created = create_topics(servers, settings.partitions)
        differing = differing_settings(servers)
        if asked.apply:
            apply_settings(servers, differing)
    except LoopwrightError as error:
        sys.exit(f"topics: {error}")
    sys.stdout.write("".join(f"{line}\n" for line in told(created, differing, applied=asked.apply)))


def told(created: list[str], differing: list[Difference], *, applied: bool) -> list[str]:
    """What the job says."""
    lines = [f"topics: {len(created)} created, {len(TOPICS) - len(created)} were there"]
    lines += [f"topics: {one.told()}{'; changed' if applied else ''}" for one in differing]
    if differing and not applied:
        lines.append(
            "topics: no setting was changed; `python -m shared.adapters.topic_admin --apply` applies the declared ones "
            "(a shorter retention deletes records)"
        )
    return lines


if __name__ == "__main__":
    main()
