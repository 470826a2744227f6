"""Configuration of an engine, and the librdkafka settings of its Kafka clients.

Reference: https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from shared.dead_letters import DeadLetterLimit
from shared.errors import Misconfigured
from shared.kafka_connection import KafkaConnection

ClientSettings = dict[str, Any]

PREFETCH_KB = 16_384
REREAD_PREFETCH_KB = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Configuration of one application of the engine. All durations are in seconds.

    Memory, in addition to the stores: `buffer_bytes` of input records that wait for a slice; 16 MiB prefetched by the
    client, and one fetch of 1 MiB per partition; one slice of `slice_bytes` with the state that it writes; 64 MiB of
    records on their way to the broker. A reread adds 4 MiB of buffered records, 8 records more, and 4 MiB prefetched.
    """

    kafka: KafkaConnection
    application: str
    """The consumer group. Under a new name the engine continues from the positions in the changelog."""
    instance: str
    """Name of this process among those that share a data folder. Its stores are named after it."""
    inputs: tuple[str, ...]
    """Topics to read, all with the same number of partitions. At the same append time, earlier ones come first."""
    changelog: str
    dead_letters: str
    outputs: frozenset[str]
    """Every topic that the step may write."""
    identity: str = ""
    """Name of this process within the application, for the `transactional.id`; the instance's if empty.

    It must be stable and unique (`instance.py`). A restarted process aborts the transaction that it left open under
    this name at once; of two processes under one name, the later one fences the earlier."""
    service: str = ""
    """Service name in dead letters; the application's if empty."""
    numbered_outputs: tuple[str, ...] = ()
    """Outputs whose records are numbered from the state, with the same partitions as the inputs.

    If such a topic has records but the changelog has no positions, the partition halts: the state is lost, and numbers
    would be used again."""
    partitions: int | None = None
    """Expected number of partitions of inputs and changelog. If None, they only have to agree with each other."""

    require_append_time: bool = True
    """Refuse inputs whose timestamps the broker does not set. Off only for tests and benchmarks that choose them."""

    slice_records: int = 4_000
    """Most input records in a slice."""
    slice_bytes: int = 8 << 20
    """Most memory of the input records in a slice."""
    buffer_bytes: int = 64 << 20
    """Memory for input records that wait for a slice. An input whose share of it is full is paused."""
    commit_interval: float = 0.1
    """Time from one slice to the next while records arrive slowly."""
    tick_interval: float = 1.0
    """Time from one `Tick` of an idle partition to the next."""
    max_clock_difference: float = 60.0
    """Ticks stop while this host's clock and the broker's differ by more than this."""
    session_timeout: float = 6.0
    transaction_timeout: float = 4.0
    """Less than `session_timeout`, so that a dead process's transaction is aborted before its successor reads."""
    max_record_bytes: int = 1_000_000
    """Largest output (with key and headers) or state (with key); less than the topics' `max.message.bytes`."""
    dead_letter_limit: DeadLetterLimit = field(default_factory=DeadLetterLimit)
    """A partition in which unexpected errors exceed it halts. Records that cannot be parsed do not count."""

    def __post_init__(self) -> None:
        if not self.inputs or len(set(self.inputs)) != len(self.inputs):
            raise Misconfigured(
                f"{self.application}: inputs must name at least one topic, and each topic once, not {self.inputs}."
            )
        if self.transaction_timeout >= self.session_timeout:
            raise Misconfigured(
                f"{self.application}: transaction_timeout ({self.transaction_timeout} s) must be less than "
                f"session_timeout ({self.session_timeout} s)."
            )

    @property
    def transactional_id(self) -> str:
        """The `transactional.id` of this process's producer."""
        return f"{self.application}-{self.identity or self.instance}"

    def _common(self) -> ClientSettings:
        return {
            "client.id": self.transactional_id,
            # Reconnect soon, and at least once a second.
            "reconnect.backoff.ms": 100,
            "reconnect.backoff.max.ms": 1_000,
            # Critical messages only: the engine reports errors itself.
            "log_level": 2,
        }

    def _reader(self) -> ClientSettings:
        return self._common() | {
            "group.id": self.application,
            # Only the group member uses it, but every client compares `max.poll.interval.ms` with it.
            "session.timeout.ms": round(self.session_timeout * 1000),
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "queued.max.messages.kbytes": PREFETCH_KB,
            # The end of an idle input is reported with the next fetch response, so fetch often.
            "fetch.wait.max.ms": 50,
            "fetch.error.backoff.ms": 100,
        }

    def consumer_settings(self) -> ClientSettings:
        """Return the settings of the group member that reads the inputs."""
        return self._reader() | {
            "partition.assignment.strategy": "range",
            "heartbeat.interval.ms": max(100, round(self.session_timeout * 1000 / 6)),
        }

    def restorer_settings(self) -> ClientSettings:
        """Return the settings of the changelog reader, which is assigned manually and commits nothing."""
        return self._reader()

    def rereader_settings(self) -> ClientSettings:
        """Return the settings of the reader of the step's own outputs, which is assigned manually."""
        return self._reader() | {"queued.max.messages.kbytes": REREAD_PREFETCH_KB}

    def watermark_settings(self) -> ClientSettings:
        """Return the settings for reading high watermarks.

        A read_committed client would report the last stable offset instead.
        """
        return self._reader() | {"isolation.level": "read_uncommitted"}

    def admin_settings(self) -> ClientSettings:
        """Return the settings of the client that describes the changelog topic."""
        return self._common()

    def producer_settings(self) -> ClientSettings:
        """Return the settings of the transactional producer."""
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
            # The broker decides what is too large; the engine isolates a refused record as a dead letter.
            "message.max.bytes": self.max_record_bytes + 1_048_576,
        }
