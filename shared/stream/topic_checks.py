"""Checks of the engine's topics: settings without which its results would be wrong, and topics that were replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource

from shared.adapters.kafka_clients import build_admin
from shared.adapters.kafka_errors import AUTHORIZATION_ERRORS
from shared.errors import Misconfigured
from shared.stream.config import EngineConfig

METADATA_TIMEOUT_S = 5.0
CHECK_INTERVAL_S = 30.0
"""Time from one check of a running engine to the next."""
FIX = "python -m shared.adapters.topic_admin --apply"


@dataclass(frozen=True, slots=True)
class TopicDescription:
    """One topic, as the broker describes it now."""

    topic_id: str
    """Id of the topic; a topic that is deleted and created again under the same name gets a new one."""
    settings: Mapping[str, str] | None
    """The topic's settings, or None if this process is not authorized to read them."""


def setting_problems(
    inputs: Sequence[str], changelog: str, topics: Mapping[str, TopicDescription]
) -> list[str]:
    """Return the settings with which the engine must not run. Settings that cannot be read are not judged."""
    problems = []
    for topic in inputs:
        settings = topics[topic].settings
        if settings is not None and settings.get("message.timestamp.type") != "LogAppendTime":
            found = settings.get("message.timestamp.type")
            problems.append(f"{topic}: message.timestamp.type is {found}, and must be LogAppendTime")
    settings = topics[changelog].settings
    if settings is not None and settings.get("cleanup.policy") != "compact":
        found = settings.get("cleanup.policy")
        problems.append(f"{changelog}: cleanup.policy is {found}, and must be compact")
    return problems


class TopicInspector:
    """Describes the inputs and the changelog. Not thread-safe."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._topics = [*config.inputs, config.changelog]
        self._admin: AdminClient | None = None
        self._pending: tuple[dict[str, Any], dict[Any, Any]] | None = None
        self._next = 0.0

    def inspect(self) -> dict[str, TopicDescription]:
        """Return the description of each topic, after checking its settings.

        Raises `Misconfigured` with the remedy, and `KafkaException`.
        """
        return self._checked(_descriptions(*self._request()))

    def poll(self, now: float) -> dict[str, TopicDescription] | None:
        """Do the same every `CHECK_INTERVAL_S` without waiting. Returns None until an answer of all topics arrives.

        Raises `Misconfigured`.
        """
        if self._pending is None:
            if now < self._next:
                return None
            self._next = now + CHECK_INTERVAL_S
            self._pending = self._request()
        described, configured = self._pending
        if not all(future.done() for future in (*described.values(), *configured.values())):
            return None
        self._pending = None
        try:
            return self._checked(_descriptions(described, configured))
        except KafkaException:
            return None

    def _request(self) -> tuple[dict[str, Any], dict[Any, Any]]:
        if self._admin is None:
            self._admin = build_admin(self._config.kafka, self._config.admin_settings())
        resources = [ConfigResource(ConfigResource.Type.TOPIC, topic) for topic in self._topics]
        return (
            self._admin.describe_topics(TopicCollection(self._topics), request_timeout=METADATA_TIMEOUT_S),
            self._admin.describe_configs(resources, request_timeout=METADATA_TIMEOUT_S),
        )

    def _checked(self, topics: dict[str, TopicDescription]) -> dict[str, TopicDescription]:
        inputs = self._config.inputs if self._config.require_append_time else ()
        problems = setting_problems(inputs, self._config.changelog, topics)
        if problems:
            raise Misconfigured(
                f"{self._config.application} cannot run with these topic settings: {'; '.join(problems)}. With other "
                "settings, a producer's clock would decide what expires, or state would be deleted. Run "
                f"`{FIX}`, and start again."
            )
        return topics


def _descriptions(described: dict[str, Any], configured: dict[Any, Any]) -> dict[str, TopicDescription]:
    settings = {resource.name: _settings(future) for resource, future in configured.items()}
    return {
        topic: TopicDescription(str(future.result().topic_id), settings[topic])
        for topic, future in described.items()
    }


def _settings(future: Any) -> dict[str, str] | None:
    """Return a topic's settings, or None if this process may not read them. Raises `KafkaException`."""
    try:
        return {name: str(entry.value) for name, entry in future.result().items()}
    except KafkaException as error:
        if error.args[0].name() in AUTHORIZATION_ERRORS:
            return None
        raise
