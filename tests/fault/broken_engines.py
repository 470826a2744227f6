"""Engines that are broken on purpose, each by a common mistake. The oracle of the fault tests must catch every one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition

from services.processor.core.wire import SERVICE
from shared.cloudevents import cloudevent
from shared.events import FEEDBACK, Outcome, OutcomeKind, from_ms, parse_union
from shared.records import Output, Record
from shared.stream import engine as engine_module
from shared.stream import partition as partition_module
from shared.stream.config import EngineConfig
from shared.stream.engine import Engine
from shared.stream.merge import MergeBuffer
from shared.stream.partition import PartitionSlice
from shared.stream.slice_runner import CommitStats
from shared.stream.state_store import POSITIONS_KEY
from shared.stream.step import RereadComplete, RereadingStep, RereadRequest, State, Tick
from shared.stream.transaction import TransactionalProducer
from shared.topics import FEEDBACK_EVENTS, FEEDBACK_OUTCOMES

Wrap = Callable[[RereadingStep], RereadingStep]
VARIANTS = (
    "ack before commit",
    "positions outside the transaction",
    "store before commit",
    "dedup key before the write",
    "changelog outside the transaction",
)
ONE_TOPIC_AHEAD = "one topic ahead"
ERASED_USERS_IN_MEMORY = "erased users in memory"


def broken(variant: str, config: EngineConfig, folder: Path) -> tuple[Callable[..., Engine], Wrap]:
    """Return the engine class of a variant and the wrapper of its step. An empty variant is not broken."""
    make_engine: Callable[..., Engine] = Engine
    wrap: Wrap = _unchanged
    if variant == "ack before commit":
        make_engine = CommitsPositionsFirst
    elif variant == "positions outside the transaction":
        make_engine = CommitsPositionsAfter
        _replace(engine_module, "TransactionalProducer", TransactionWithoutPositions)
    elif variant == "store before commit":
        make_engine = WritesStoreFirst
    elif variant == "dedup key before the write":
        folder.mkdir(parents=True, exist_ok=True)
        wrap = lambda step: RemembersEventsFirst(step, folder.parent / "remembered")  # noqa: E731
    elif variant == "changelog outside the transaction":
        SeparateChangelogProducer.changelog, SeparateChangelogProducer.servers = (
            config.changelog,
            config.kafka.servers,
        )
        _replace(engine_module, "TransactionalProducer", SeparateChangelogProducer)
    elif variant == ERASED_USERS_IN_MEMORY:
        wrap = KeepsErasedUsersInMemory
    elif variant == ONE_TOPIC_AHEAD:
        _replace(partition_module, "MergeBuffer", UnmergedInputs)
    else:
        assert not variant, variant
    return make_engine, wrap


def _replace(module: ModuleType, name: str, by: type) -> None:
    """Patch a module of this process, which belongs to one test."""
    setattr(module, name, by)


def _unchanged(step: RereadingStep) -> RereadingStep:
    return step


def _commit(consumer: Consumer, shares: list[PartitionSlice]) -> None:
    consumer.commit(
        offsets=[
            TopicPartition(topic, share.partition.number, offset)
            for share in shares
            for topic, offset in share.new_positions.offsets.items()
        ],
        asynchronous=False,
    )


class BelievesTheGroup(Engine):
    """Starts at the group's offsets instead of the positions that belong to the state."""

    def _reconcile(self, losses: Mapping[int, str]) -> None:
        super()._reconcile(losses)
        for number, partition in self._restoring.items():
            partition.halted = None
            partition.positions.offsets |= self._committed_offsets.get(number, {})


class CommitsPositionsFirst(BelievesTheGroup):
    """Commits positions before the transaction. A crash in between loses records."""

    def _transact(self, shares: list[PartitionSlice]) -> CommitStats | None:
        _commit(self._inputs._consumer, shares)
        return super()._transact(shares)


class TransactionWithoutPositions(TransactionalProducer):
    """Leaves the positions out of the transaction."""

    def send_positions(self, positions: list[TopicPartition], group: Any) -> None:
        while self._producer.flush(1.0):
            pass


class CommitsPositionsAfter(BelievesTheGroup):
    """Commits positions after the transaction. A crash in between repeats records."""

    def _transact(self, shares: list[PartitionSlice]) -> CommitStats | None:
        commit = super()._transact(shares)
        _commit(self._inputs._consumer, shares)
        return commit


class WritesStoreFirst(Engine):
    """Writes the store before the commit. A crash in between leaves a state that was never committed."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        probe = settings.pop("probe")
        self._shares: list[PartitionSlice] = []

        def store_first(phase: str) -> None:
            if phase == "after_produce":
                for share in self._shares:
                    self._write(share)
            probe(phase)

        super().__init__(*args, **settings, probe=store_first)

    def _transact(self, shares: list[PartitionSlice]) -> CommitStats | None:
        self._shares = shares
        return super()._transact(shares)

    def _write(self, share: PartitionSlice) -> None:
        if share.changelog_offset is not None:
            writes = {**share.write_buffer.writes, POSITIONS_KEY: share.new_positions.encode()}
            for batch in (writes, {}):  # the second call flushes the first to disk
                share.partition.store.apply(batch, share.changelog_offset + 1)
                self._stop.wait(0.1)


class RemembersEventsFirst:
    """Remembers events in a side store before the transaction, like a Redis key that is set before the write.

    After a crash in between, it takes an event that never counted for a repetition.
    """

    def __init__(self, step: RereadingStep, path: Path) -> None:
        self._step = step
        self._seen = set(path.read_text().split()) if path.exists() else set()
        self._file = path.open("a")

    def __call__(
        self, state: State, record: Record | Tick | RereadComplete
    ) -> Iterator[Output | RereadRequest]:
        if not isinstance(record, Record) or record.topic != FEEDBACK_EVENTS.name:
            yield from self._step(state, record)
            return
        key = hashlib.sha256(record.value or b"").hexdigest()
        if key in self._seen:
            yield self._duplicate(record)
            return
        self._seen.add(key)
        self._file.write(f"{key}\n")
        self._file.flush()
        yield from self._step(state, record)

    def _duplicate(self, record: Record) -> Output:
        event = parse_union(FEEDBACK, record.value)
        outcome = Outcome(
            line=event.line,
            response_id=event.response_id,
            event_id=event.event_id,
            outcome=OutcomeKind.DUPLICATE,
            decided_at=from_ms(record.timestamp),
        )
        return cloudevent(
            FEEDBACK_OUTCOMES,
            event.response_id,
            outcome,
            source=SERVICE,
            ce_id=f"{event.response_id}/{event.event_id}",
            at=datetime.now(UTC),
            partition=record.partition,
        )


class KeepsErasedUsersInMemory:
    """Keeps erased users in memory only. After a crash, their late records are accepted."""

    def __init__(self, step: RereadingStep) -> None:
        self._step = step
        self._users: dict[bytes, bytes] = {}

    def __call__(
        self, state: State, record: Record | Tick | RereadComplete
    ) -> Iterable[Output | RereadRequest]:
        return self._step(StateWithoutErasedUsers(state, self._users), record)


class StateWithoutErasedUsers:
    """A `State` that keeps erased users in a dictionary instead."""

    def __init__(self, state: State, users: dict[bytes, bytes]) -> None:
        self._state, self._users = state, users

    def get(self, key: bytes) -> bytes | None:
        return self._users.get(key) if key.startswith(b"f/") else self._state.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        if key.startswith(b"f/"):
            self._users[key] = value
        else:
            self._state.put(key, value)

    def delete(self, key: bytes) -> None:
        if key.startswith(b"f/"):
            self._users.pop(key, None)
        else:
            self._state.delete(key)

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        return self._state.scan(start, end)


class SeparateChangelogProducer(TransactionalProducer):
    """Writes the changelog outside the transaction. A crash before the commit leaves state without its outputs."""

    changelog = ""
    servers = ""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._separate = Producer({"bootstrap.servers": self.servers, "acks": "all", "linger.ms": 5})

    def produce(self, outputs: Iterable[Output]) -> None:
        rest = []
        for output in outputs:
            if output.topic == self.changelog:
                self._separate.produce(output.topic, output.value, output.key, output.partition or 0)
            else:
                rest.append(output)
        super().produce(rest)

    def produce_changelog(self, topic: str, partition: int, writes: Mapping[bytes, bytes | None]) -> None:
        self.begin()
        for key, value in writes.items():
            self._separate.produce(topic, value, key, partition)

    def produce_tracked(self, output: Output, delivered: Callable[[int, int | None], None]) -> None:
        self.begin()
        self._separate.produce(
            output.topic,
            output.value,
            output.key,
            output.partition or 0,
            on_delivery=lambda error, message: None if error else delivered(message.offset() or 0, None),
        )

    def send_positions(self, positions: list[TopicPartition], group: Any) -> None:
        self._separate.flush(10.0)
        super().send_positions(positions, group)


class UnmergedInputs(MergeBuffer):
    """Hands out the first topic's records without waiting for older ones of the other topics."""

    def _next_run(self) -> tuple[int, float] | None:
        return next(((order, float("inf")) for order, queue in enumerate(self._queues) if queue), None)
