"""What an engine is told, and how that becomes settings of librdkafka.

Reference: https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.dead_letters import DeadLetterLimit
from shared.errors import Misconfigured

ClientSettings = dict[str, Any]

PREFETCH_KB = 16_384
REREAD_PREFETCH_KB = 4_096
AUTHORIZATION_ERRORS = ("TOPIC_AUTHORIZATION_FAILED", "GROUP_AUTHORIZATION_FAILED")
"""Errors of a reader that may not read: no waiting mends them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """One application of the engine. Times in seconds.

    Memory, beside the stores: `buffer_bytes` of records read and not yet processed, one call's worth more (at
    most 16 MiB prefetched by the client, and one fetch of 1 MiB per partition), one slice of `slice_bytes`
    with the state it writes, and 64 MiB of records on their way to the broker. While a step sees its output
    again: 4 MiB of that waiting, 8 records more, and 4 MiB prefetched.
    """

    bootstrap_servers: str
    application: str
    """The consumer group. Who changes it starts anew from the positions in the changelog."""
    instance: str
    """Stable name of this process among those of the application; it names the `transactional.id`.

    A restart under the same name aborts at once what its dead predecessor left open; two alive under one name
    fence each other."""
    inputs: tuple[str, ...]
    """Topics with the same number of partitions, earlier ones first at the same append time."""
    changelog: str
    dead_letters: str
    outputs: frozenset[str]
    """All topics that the step may write."""
    service: str = ""
    """Named in dead letters; the application if empty."""
    partitions: int | None = None
    """P, if the caller knows it; inputs and changelog must agree with it and among themselves."""

    slice_records: int = 4_000
    slice_bytes: int = 8 << 20
    buffer_bytes: int = 64 << 20
    commit_interval: float = 0.1
    tick_interval: float = 1.0
    session_timeout: float = 6.0
    transaction_timeout: float = 4.0
    """Below the session's, so that a dead process' transaction is gone when its successor reads."""
    max_record_bytes: int = 1_000_000
    """Of an output with its key and headers, or a state with its key. Below the topics' `max.message.bytes`."""
    dead_letter_limit: DeadLetterLimit = field(default_factory=DeadLetterLimit)
    max_failed_ticks: int = 10
    """So many ticks of one partition raising in a row halt the engine."""
    client: Mapping[str, Any] = field(default_factory=dict)
    """Settings for every client, such as SASL. They may not replace what exactly-once rests on."""

    def __post_init__(self) -> None:
        if not self.inputs or len(set(self.inputs)) != len(self.inputs):
            raise Misconfigured(f"{self.application}: inputs must be named, each once; got {self.inputs}.")
        if self.transaction_timeout >= self.session_timeout:
            raise Misconfigured(
                f"{self.application}: transaction_timeout ({self.transaction_timeout} s) must be below "
                f"session_timeout ({self.session_timeout} s)."
            )
        taken = sorted(_RESERVED_SETTINGS & set(self.client))
        if taken:
            raise Misconfigured(f"{self.application}: these client settings are the engine's: {taken}.")

    @property
    def transactional_id(self) -> str:
        """The identity under which this process writes."""
        return f"{self.application}-{self.instance}"

    def _common(self) -> ClientSettings:
        return {
            "bootstrap.servers": self.bootstrap_servers,
            "client.id": self.transactional_id,
            # Reconnecting: soon, and never slower than once a second.
            "reconnect.backoff.ms": 100,
            "reconnect.backoff.max.ms": 1_000,
            # What goes wrong is told by the engine, once and in words.
            "log_level": 2,
            **self.client,
        }

    def _reader(self) -> ClientSettings:
        return self._common() | {
            "group.id": self.application,
            # Of a member; the others carry it too, as the client holds `max.poll.interval.ms` against it.
            "session.timeout.ms": round(self.session_timeout * 1000),
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "queued.max.messages.kbytes": PREFETCH_KB,
            # The end of a quiet input is told with the next answer of its broker: ask often.
            "fetch.wait.max.ms": 50,
            "fetch.error.backoff.ms": 100,
        }

    def consumer_settings(self) -> ClientSettings:
        """The member of the group that reads the inputs."""
        return self._reader() | {
            "partition.assignment.strategy": "range",
            "heartbeat.interval.ms": max(100, round(self.session_timeout * 1000 / 6)),
        }

    def restorer_settings(self) -> ClientSettings:
        """Reads the changelog; assigned by hand, so it is no member of the group and commits nothing."""
        return self._reader()

    def rereader_settings(self) -> ClientSettings:
        """Reads outputs again, for the steps that asked; assigned by hand like the restorer."""
        return self._reader() | {"queued.max.messages.kbytes": REREAD_PREFETCH_KB}

    def watermark_settings(self) -> ClientSettings:
        """Asks for high watermarks: a read_committed client is told the last stable offset instead."""
        return self._reader() | {"isolation.level": "read_uncommitted"}

    def admin_settings(self) -> ClientSettings:
        """Asks what the changelog is like."""
        return self._common()

    def producer_settings(self) -> ClientSettings:
        """The one transactional writer of this process."""
        return self._common() | {
            "transactional.id": self.transactional_id,
            "transaction.timeout.ms": round(self.transaction_timeout * 1000),
            "enable.idempotence": True,
            "acks": "all",
            "partitioner": "murmur2_random",
            "compression.type": "lz4",
            "linger.ms": 5,
            "queue.buffering.max.messages": 200_000,
            "queue.buffering.max.kbytes": 65_536,
            # The broker is the judge of size; what it refuses is isolated and dead-lettered.
            "message.max.bytes": self.max_record_bytes + 1_048_576,
        }


_RESERVED_SETTINGS = frozenset(
    {
        "acks", "auto.offset.reset", "bootstrap.servers", "enable.auto.commit", "enable.auto.offset.store",
        "enable.idempotence", "enable.partition.eof", "group.id", "isolation.level",
        "partition.assignment.strategy", "partitioner", "transactional.id",
    }
)  # fmt: skip
