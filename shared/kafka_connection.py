"""How a deployment reaches Kafka: the brokers, the librdkafka properties, and the namespace of its names.

`KafkaConnection` is a value. `shared/adapters/kafka_clients.py` builds clients from it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMESPACE_PATTERN = r"^([a-z0-9]([a-z0-9._-]{0,39}[a-z0-9])?)?$"
"""At most 41 characters, so that no prefixed topic reaches Kafka's limit of 249."""
RESERVED_PROPERTIES = frozenset(
    {
        # exactly-once processing and acknowledged writes
        "acks", "request.required.acks", "enable.idempotence", "transactional.id", "transaction.timeout.ms",
        "message.timeout.ms", "delivery.timeout.ms", "retries", "message.send.max.retries", "max.in.flight",
        "max.in.flight.requests.per.connection", "partitioner",
        # what is read, and by whom
        "isolation.level", "auto.offset.reset", "enable.auto.commit", "auto.commit.enable", "enable.auto.offset.store",
        "enable.partition.eof", "group.id", "group.instance.id", "group.protocol", "group.remote.assignor",
        "partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms", "check.crcs",
        "allow.auto.create.topics",
        # names
        "client.id",
    }
)  # fmt: skip
"""Properties that Loopwright sets itself, because its guarantees depend on them."""
_SHOWN = re.compile(
    r"security\.protocol|sasl\.mechanisms?|sasl\.oauthbearer\.(method|scope)|(ssl|https)\..*\.location|.*\.(ms|bytes|kbytes|max)"
    r"|client\.(rack|dns\.lookup)|broker\.address\.family|enable\..*|debug|log_level|compression\..*"
)
"""Properties whose values are logged. All others are masked, so that a new kind of secret is masked too."""


class KafkaProperties(Mapping[str, str]):
    """librdkafka properties. Immutable; text representations mask values that may be secret."""

    def __init__(self, values: Mapping[str, str] | None = None) -> None:
        self._values = dict(values or {})

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        return ", ".join(
            f"{name}={value if _SHOWN.fullmatch(name) else '***'}" for name, value in self._values.items()
        )

    @classmethod
    def parse(cls, source: object) -> KafkaProperties:
        """Return the properties in `source`: the path of a file, or a JSON object as text.

        A file has a JSON object too, or one `key=value` per line; lines that begin with `#` are comments.

        Raises:
            ValueError: if a property cannot be read or is reserved. The message names it, but never its value.

        """
        if isinstance(source, KafkaProperties):
            return source
        text = str(source).strip()
        if not text:
            return cls()
        if not text.startswith("{"):
            try:
                text = Path(text).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(
                    f"cannot read the file ({type(error).__name__}): expected the path of a file with librdkafka "
                    "properties, or a JSON object"
                ) from None
        values = _from_json(text) if text.startswith("{") else _from_lines(text)
        _refuse_reserved(values)
        return cls(values)


def _from_json(text: str) -> dict[str, str]:
    try:
        found: dict[str, Any] = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    values = {}
    for name, value in found.items():
        if isinstance(value, bool):
            values[name] = str(value).lower()
        elif isinstance(value, str | int | float):
            values[name] = str(value)
        else:
            raise ValueError(f"property {name}: expected a string, a number, or true or false")  # noqa: TRY004 - for pydantic
    return values


def _from_lines(text: str) -> dict[str, str]:
    pairs = []
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith(("#", "!")):
            continue
        name, equals, value = stripped.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"line {number} is not a property: expected key=value")
        pairs.append((name.strip(), value.strip()))
    return _unique(pairs)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"property {name} is set twice")
        values[name] = value
    return values


def _refuse_reserved(values: Mapping[str, str]) -> None:
    if values.keys() & {"bootstrap.servers", "metadata.broker.list"}:
        raise ValueError("property bootstrap.servers: set KAFKA_BOOTSTRAP_SERVERS instead")
    reserved = sorted(RESERVED_PROPERTIES & values.keys())
    if reserved:
        raise ValueError(
            f"property {reserved[0]}: Loopwright sets it itself, because its guarantees depend on it; remove "
            f"{', '.join(reserved)}"
        )


@dataclass(frozen=True, slots=True)
class KafkaConnection:
    """The Kafka cluster of a deployment, and the deployment's place in it.

    Code uses logical names, such as `chat.responses`. The clients add the namespace to everything that they send to the
    broker: topics, consumer groups, transactional ids and client ids.
    """

    servers: str
    """Comma-separated list of host:port."""
    namespace: str = ""
    properties: KafkaProperties = field(default_factory=KafkaProperties)

    @property
    def prefix(self) -> str:
        """The beginning of all names of this deployment: the namespace and a dot, or nothing."""
        return f"{self.namespace}." if self.namespace else ""
