"""Creates the topics of `shared/topics.py`, and checks P. Safe to run again; changes nothing that exists."""

from __future__ import annotations

import sys
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from shared.adapters.kafka import translate
from shared.errors import BrokerUnavailable, LoopwrightError, Misconfigured
from shared.settings import Settings, load
from shared.topics import TOPICS, Topic

WAIT_S = 60.0


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
        raise Misconfigured(f"topics missing: {', '.join(missing)}; run `python -m shared.topics`")
    _refuse_other_p(existing, p)


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
    try:
        settings = load(Settings)
        created = create_topics(settings.kafka_bootstrap_servers, settings.partitions)
    except LoopwrightError as error:
        sys.exit(f"topics: {error}")
    sys.stdout.write(f"topics: {len(created)} created, {len(TOPICS) - len(created)} were there\n")
