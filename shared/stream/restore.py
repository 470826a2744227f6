"""Restores the stores of newly assigned partitions from the changelog."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicCollection, TopicPartition
from confluent_kafka.admin import ConfigResource

from shared.adapters.clock import SystemClock
from shared.adapters.kafka_clients import build_admin, build_consumer
from shared.adapters.kafka_errors import AUTHORIZATION_ERRORS, describe_refusal
from shared.errors import Retryable
from shared.ports import Clock
from shared.stream.config import EngineConfig
from shared.stream.continuity import changelog_loss
from shared.stream.log_history import LogHistory
from shared.stream.partition import Positions
from shared.stream.state_store import AS_OF_KEY, CHANGELOG_ID_KEY, POSITIONS_KEY, StateStore
from shared.stream.store_validation import DELETE_RETENTION_MS, ChangelogPartition, rebuild_reason

log = structlog.get_logger(__name__)

RECORDS_PER_CALL = 4_000
CALL_TIMEOUT_S = 0.02
STALLED_AFTER_S = 15.0
"""Longer than the engine's transactions can stay open: their timeout, and the interval of the broker's scan for it."""
METADATA_TIMEOUT_S = 5.0
LOG_INTERVAL_S = 2.0

Writes = dict[bytes, bytes | None]


class RestoreFailed(Retryable):
    """The changelog could not be read. Close the `Restorer` and start a new one."""

    code = "restore_failed"


@dataclass(slots=True)
class RestoreProgress:
    """Progress of one partition, in changelog offsets."""

    start: int
    """Position of the store when the restore began."""
    target: int
    """End of the changelog when the restore began."""
    position: int

    @property
    def done(self) -> bool:
        """Whether the store reflects everything that the changelog held when the restore began."""
        return self.position >= self.target


class Restorer:
    """Reads each changelog partition from its store's position to the high watermark at the time of construction.

    The caller calls `advance` until `done`, then `close`; it keeps ownership of the stores. A store that the rest of
    the changelog would not complete is wiped first (`rebuild_reason`).

    The consumer reads committed records only, so it cannot pass an open transaction. Once it reaches the high
    watermark, every transaction that a former owner began is therefore decided. Progress counts offsets, not records,
    because transaction markers and compaction leave gaps.

    The constructor raises `KafkaException` if the broker is unreachable, and `StoreFailed`.
    """

    def __init__(
        self, config: EngineConfig, stores: Mapping[int, StateStore], clock: Clock | None = None
    ) -> None:
        self._application = config.application
        self._topic = config.changelog
        self._prefix = config.kafka.prefix
        self._stores = dict(stores)
        self.progress: dict[int, RestoreProgress] = {}
        self.losses: dict[int, str] = {}
        """Why the changelog cannot rebuild the state of a partition. Its store is left as it is."""
        self._changelogs: dict[int, ChangelogPartition] = {}
        self._recoveries: dict[int, int] = {}
        """Number of recoveries in each store that had positions when the restore began."""
        self.records = 0
        """Records read from the changelog so far."""
        self._consumer: Consumer | None = None
        self._started_ms = (clock or SystemClock()).now_ms()
        self._started = self._last_read = self._last_log = time.monotonic()
        if not self._stores:
            return
        self._history = LogHistory(config)
        topic_id, delete_retention_ms = _describe_changelog(config)
        watermarks = build_consumer(config.kafka, config.watermark_settings())
        try:
            for partition, store in self._stores.items():
                low, high = self._log_bounds(watermarks, partition)
                changelog = ChangelogPartition(topic_id, low, high, delete_retention_ms)
                self._changelogs[partition] = changelog
                self.progress[partition] = self._prepare(partition, store, changelog)
                positions = store.get(POSITIONS_KEY)
                if positions is not None:
                    self._recoveries[partition] = Positions.decode(positions).recoveries
        finally:
            watermarks.close()
        if self.done:
            self._log_progress()
            return
        self._consumer = build_consumer(config.kafka, config.restorer_settings())
        # Numeric offsets, because a new client needs half a second to look up "beginning".
        self._consumer.assign(
            [TopicPartition(self._topic, n, p.start) for n, p in self.progress.items() if not p.done]
        )

    @property
    def done(self) -> bool:
        """Whether every partition is restored."""
        return all(progress.done for progress in self.progress.values())

    def advance(self) -> None:
        """Read for a moment and apply what arrived. Raises `RestoreFailed` or `StoreFailed`."""
        if self._consumer is None or self.done:
            return
        writes: dict[int, Writes] = {}
        rebuilt: set[int] = set()
        for message in self._consumer.consume(RECORDS_PER_CALL, CALL_TIMEOUT_S):
            partition, offset = _partition_and_offset(message)
            error = message.error()
            if partition in rebuilt:
                continue
            if error is None:
                key, value = message.key(), message.value()
                if key == POSITIONS_KEY and value is not None and self._has_other_history(partition, value):
                    self._rebuild(partition)
                    writes.pop(partition, None)
                    rebuilt.add(partition)
                    continue
                writes.setdefault(partition, {})[key or b""] = value
                self.progress[partition].position = offset + 1
                self.records += 1
            elif error.name() == "_PARTITION_EOF":
                writes.setdefault(partition, {})
                self.progress[partition].position = offset
            else:
                self._raise_error(error)
        if any(writes.values()):
            self._last_read = time.monotonic()
        for partition, batch in writes.items():
            if self.progress[partition].done:
                batch[AS_OF_KEY] = b"%d" % self._started_ms
            self._stores[partition].apply(batch, self.progress[partition].position)
        self._log_progress()

    @property
    def ratio(self) -> float:
        """Share of the changelog offsets that have been read, from 0 to 1."""
        total = sum(p.target - p.start for p in self.progress.values())
        left = sum(max(0, p.target - p.position) for p in self.progress.values())
        return 1 - left / total if total else 1.0

    def describe_progress(self) -> str:
        """Return the progress as text for people, with instructions if the restore is stalled."""
        each = self.progress.items()
        total = sum(p.target - p.start for _, p in each)
        rate = self.records / max(0.001, time.monotonic() - self._started)
        text = (
            f"{sum(p.done for _, p in each)} of {len(each)} partitions restored, "
            f"{self.ratio:.0%} of {total} changelog offsets read, {rate:.0f} records/s"
        )
        if self.done or time.monotonic() < self._last_read + STALLED_AFTER_S:
            return text
        at = ", ".join(f"partition {n} at offset {p.position}" for n, p in each if not p.done)
        return (
            f"{text}; an open transaction in {self._topic} blocks reading ({at}). If this lasts, the broker has lost "
            "track of it: `kafka-transactions.sh find-hanging` shows it. `abort` unblocks readers, but leaves half a "
            "transaction if other partitions have its commit: read docs/decisions/fault-tests.md first."
        )

    def close(self) -> None:
        """Close the consumer; the stores stay open."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def _prepare(self, partition: int, store: StateStore, changelog: ChangelogPartition) -> RestoreProgress:
        """Wipe the store if it has to be rebuilt, and return where to start reading.

        A store is kept as it is if the changelog cannot rebuild it: it may be the only copy of the state.
        """
        loss = self._loss(partition, store, changelog)
        if loss is not None:
            self.losses[partition] = loss
            return RestoreProgress(changelog.high, changelog.high, changelog.high)
        reason = rebuild_reason(store, changelog, self._started_ms)
        if reason is not None:
            log.warning(
                "store removed, to be rebuilt from the changelog",
                application=self._application,
                partition=partition,
                reason=reason,
            )
            store.wipe()
        position = store.changelog_position()
        start = changelog.low if position is None else position
        as_of = b"%d" % self._started_ms
        if position is None:
            # Deletions are kept long enough, counted from now, for the rebuild to read all of them.
            store.apply({CHANGELOG_ID_KEY: changelog.topic_id.encode(), AS_OF_KEY: as_of}, start)
        elif start == changelog.high:
            store.apply({AS_OF_KEY: as_of}, start)
        return RestoreProgress(start, changelog.high, start)

    def _has_other_history(self, partition: int, value: bytes) -> bool:
        """Return whether a person recovered the partition after its store was written, which may not fit any more."""
        known = self._recoveries.get(partition)
        return known is not None and Positions.decode(value).recoveries != known

    def _rebuild(self, partition: int) -> None:
        """Wipe a store during the restore, and read the changelog from its first offset."""
        changelog, store = self._changelogs[partition], self._stores[partition]
        log.warning(
            "store removed, to be rebuilt from the changelog",
            application=self._application,
            partition=partition,
            reason="the partition was recovered after this copy was made",
        )
        del self._recoveries[partition]
        store.wipe()
        as_of = b"%d" % self._started_ms
        store.apply({CHANGELOG_ID_KEY: changelog.topic_id.encode(), AS_OF_KEY: as_of}, changelog.low)
        self.progress[partition] = RestoreProgress(changelog.low, changelog.high, changelog.low)
        assert self._consumer is not None
        self._consumer.seek(TopicPartition(self._topic, partition, changelog.low))

    def _loss(self, partition: int, store: StateStore, changelog: ChangelogPartition) -> str | None:
        """Return why the changelog cannot rebuild the state. Reads it only if something speaks for that."""
        position = store.changelog_position()
        store_id = None if position is None else (store.get(CHANGELOG_ID_KEY) or b"").decode()
        if store_id in (None, changelog.topic_id) and (position or 0) >= changelog.low:
            return None
        logged = self._history.newest_positions(partition, changelog.low, changelog.high)
        return changelog_loss(self._topic, changelog.topic_id, changelog.low, logged, store_id)

    def _log_bounds(self, watermarks: Consumer, partition: int) -> tuple[int, int]:
        marks: tuple[int, int] | None = watermarks.get_watermark_offsets(
            TopicPartition(self._topic, partition), timeout=METADATA_TIMEOUT_S
        )
        if marks is None:
            raise RestoreFailed(
                f"no end offset of {self._topic} [{partition}] within {METADATA_TIMEOUT_S} s; the engine tries again"
            )
        return marks

    def _raise_error(self, error: KafkaError) -> None:
        refusal = describe_refusal(error, topic=self._prefix + self._topic, reading=True)
        raise RestoreFailed(
            refusal or f"cannot read the changelog {self._topic}: {error.name()}: {error.str()}"
        )

    def _log_progress(self) -> None:
        """Log the progress at most every `LOG_INTERVAL_S`, and the duration at the end."""
        if self.done:
            log.info(
                "restored",
                application=self._application,
                progress=self.describe_progress(),
                records=self.records,
                seconds=round(time.monotonic() - self._started, 2),
            )
        elif time.monotonic() > self._last_log + LOG_INTERVAL_S:
            self._last_log = time.monotonic()
            log.info("restoring", application=self._application, progress=self.describe_progress())


def _describe_changelog(config: EngineConfig) -> tuple[str, int]:
    """Return the changelog's topic id and its `delete.retention.ms`. Raises `KafkaException`."""
    admin = build_admin(config.kafka, config.admin_settings())
    topic = config.changelog
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    described = admin.describe_topics(TopicCollection([topic]), request_timeout=METADATA_TIMEOUT_S)[topic]
    configured = admin.describe_configs([resource], request_timeout=METADATA_TIMEOUT_S)[resource]
    topic_id = str(described.result().topic_id)
    try:
        delete_retention_ms = int(configured.result()["delete.retention.ms"].value)
    except KafkaException as error:
        if error.args[0].name() not in AUTHORIZATION_ERRORS:
            raise
        log.warning(
            "not authorized to read the changelog's configuration: assuming Kafka's default delete.retention.ms "
            "of one day",
            application=config.application,
        )
        delete_retention_ms = DELETE_RETENTION_MS
    return topic_id, delete_retention_ms


def _partition_and_offset(message: Message) -> tuple[int, int]:
    partition, offset = message.partition(), message.offset()
    assert partition is not None
    return partition, -1 if offset is None else offset
