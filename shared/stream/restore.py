"""Brings the stores of newly assigned partitions to the end of the changelog."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from confluent_kafka import Consumer, KafkaException, Message, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource

from shared.adapters.clock import SystemClock
from shared.errors import Fatal, Retryable
from shared.ports import Clock
from shared.stream.config import AUTHORIZATION_ERRORS, EngineConfig
from shared.stream.state_store import AS_OF_KEY, CHANGELOG_ID_KEY, StateStore
from shared.stream.store_validation import DELETE_RETENTION_MS, ChangelogPartition, rebuild_reason

log = structlog.get_logger(__name__)

RECORDS_PER_CALL = 4_000
CALL_TIMEOUT_S = 0.02
STALLED_AFTER_S = 15.0
"""Longer than any transaction of ours may stay open: its own time, and the broker's scan."""
METADATA_TIMEOUT_S = 5.0
LOG_INTERVAL_S = 2.0

Writes = dict[bytes, bytes | None]


class RestoreFailed(Retryable):
    """The changelog could not be read; begin again."""

    code = "restore_failed"


@dataclass(slots=True)
class RestoreProgress:
    """`position` runs from `start`, where the store stands, to `target`; all are changelog offsets."""

    start: int
    target: int
    position: int

    @property
    def done(self) -> bool:
        """Whether the store reflects all that was in the changelog when the partition was assigned."""
        return self.position >= self.target


class Restorer:
    """Reads each partition of the changelog from where its store stands up to the high watermark of the moment.

    A store that the rest of the changelog would not make whole is wiped first (`fit.misfit`). The reader is
    read_committed, so it cannot pass a transaction that is still open: to reach the high watermark is to have waited
    until every transaction begun by a former owner is decided. It counts positions, not records, as transaction
    markers and compacted records leave gaps. Raises `KafkaException` where the broker is away, and `StoreFailed`.
    """

    def __init__(self, config: EngineConfig, stores: Mapping[int, StateStore], clock: Clock | None = None) -> None:
        self._application = config.application
        self._topic = config.changelog
        self._stores = dict(stores)
        self.progress: dict[int, RestoreProgress] = {}
        self.records = 0
        """How many were read of the changelog."""
        self._consumer: Consumer | None = None
        self._begun_ms = (clock or SystemClock()).now_ms()
        self._begun = self._moved = self._told = time.monotonic()
        if not self._stores:
            return
        identity, kept = _describe_changelog(config)
        watermarks = Consumer(config.watermark_settings())
        try:
            for partition, store in self._stores.items():
                low, high = self._ends(watermarks, partition)
                self.progress[partition] = self._start(partition, store, ChangelogPartition(identity, low, high, kept))
        finally:
            watermarks.close()
        if self.done:
            self._log()
            return
        self._consumer = Consumer(config.restorer_settings())
        # A number, not "beginning": to look that up takes a fresh client half a second.
        self._consumer.assign(
            [TopicPartition(self._topic, n, p.start) for n, p in self.progress.items() if not p.done]
        )

    @property
    def done(self) -> bool:
        """Whether all partitions are."""
        return all(progress.done for progress in self.progress.values())

    def advance(self) -> None:
        """Reads on for a moment. Raises `RestoreFailed`, `StoreFailed` or `Fatal`."""
        if self._consumer is None or self.done:
            return
        writes: dict[int, Writes] = {}
        for message in self._consumer.consume(RECORDS_PER_CALL, CALL_TIMEOUT_S):
            partition, offset = _partition_and_offset(message)
            error = message.error()
            if error is None:
                key, value = message.key(), message.value()
                writes.setdefault(partition, {})[key or b""] = value
                self.progress[partition].position = offset + 1
                self.records += 1
            elif error.name() == "_PARTITION_EOF":
                writes.setdefault(partition, {})
                self.progress[partition].position = offset
            else:
                self._refused(error.name(), error.str())
        if any(writes.values()):
            self._moved = time.monotonic()
        for partition, batch in writes.items():
            if self.progress[partition].done:
                batch[AS_OF_KEY] = b"%d" % self._begun_ms
            self._stores[partition].apply(batch, self.progress[partition].position)
        self._log()

    def describe_progress(self) -> str:
        """How far it is, for people; and what to do where it stands still."""
        each = self.progress.items()
        whole = sum(p.target - p.start for _, p in each)
        left = sum(max(0, p.target - p.position) for _, p in each)
        rate = self.records / max(0.001, time.monotonic() - self._begun)
        text = (
            f"{sum(p.done for _, p in each)} of {len(each)} partitions restored, "
            f"{1 - left / whole if whole else 1:.0%} of {whole} changelog offsets read, {rate:.0f} records/s"
        )
        if self.done or time.monotonic() < self._moved + STALLED_AFTER_S:
            return text
        at = ", ".join(f"partition {n} at offset {p.position}" for n, p in each if not p.done)
        return (
            f"{text}; {self._topic} stands still before a transaction that stays open ({at}). If this lasts, the "
            "broker has lost track of it: `kafka-transactions.sh find-hanging` shows it. `abort` lets readers go on, "
            "but tears it apart where other partitions have its commit: see docs/decisions/fault-tests.md first."
        )

    def close(self) -> None:
        """Releases the reader; the stores stay open."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def _start(self, partition: int, store: StateStore, changelog: ChangelogPartition) -> RestoreProgress:
        """Where to read on. A store that does not fit the changelog is wiped and built anew."""
        why = rebuild_reason(store, changelog, self._begun_ms)
        if why is not None:
            log.warning(
                "store removed, to be rebuilt from the changelog",
                application=self._application,
                partition=partition,
                why=why,
            )
            store.wipe()
        position = store.changelog_position()
        start = changelog.low if position is None else position
        if position is None:
            # What is read from here on is complete as of now: deletions are kept long enough from now.
            store.apply({CHANGELOG_ID_KEY: changelog.topic_id.encode(), AS_OF_KEY: b"%d" % self._begun_ms}, start)
        elif start == changelog.high:
            store.apply({AS_OF_KEY: b"%d" % self._begun_ms}, start)
        return RestoreProgress(start, changelog.high, start)

    def _ends(self, watermarks: Consumer, partition: int) -> tuple[int, int]:
        found: tuple[int, int] | None = watermarks.get_watermark_offsets(
            TopicPartition(self._topic, partition), timeout=METADATA_TIMEOUT_S
        )
        if found is None:
            raise RestoreFailed(f"Kafka did not tell the end of {self._topic} [{partition}].")
        return found

    def _refused(self, name: str, text: str) -> None:
        if name in AUTHORIZATION_ERRORS:
            raise Fatal(f"The changelog {self._topic} cannot be read: {name}: {text}")
        raise RestoreFailed(f"The changelog {self._topic} could not be read: {name}: {text}")

    def _log(self) -> None:
        """How far it is, now and then, and what it took in the end."""
        if self.done:
            took = round(time.monotonic() - self._begun, 2)
            log.info(
                "restored",
                application=self._application,
                progress=self.describe_progress(),
                records=self.records,
                seconds=took,
            )
        elif time.monotonic() > self._told + LOG_INTERVAL_S:
            self._told = time.monotonic()
            log.info("restoring", application=self._application, progress=self.describe_progress())


def _describe_changelog(config: EngineConfig) -> tuple[str, int]:
    """Identity of the changelog, and for how long it keeps deletions. Raises `KafkaException`."""
    admin = AdminClient(config.admin_settings())
    topic = config.changelog
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    described = admin.describe_topics(TopicCollection([topic]), request_timeout=METADATA_TIMEOUT_S)[topic]
    configured = admin.describe_configs([resource], request_timeout=METADATA_TIMEOUT_S)[resource]
    identity = str(described.result().topic_id)
    try:
        kept = int(configured.result()["delete.retention.ms"].value)
    except KafkaException as error:
        if error.args[0].name() not in AUTHORIZATION_ERRORS:
            raise
        log.warning(
            "not allowed to read the settings of the changelog: delete.retention.ms is taken to be a day",
            application=config.application,
        )
        kept = DELETE_RETENTION_MS
    return identity, kept


def _partition_and_offset(message: Message) -> tuple[int, int]:
    partition, offset = message.partition(), message.offset()
    assert partition is not None
    return partition, -1 if offset is None else offset
