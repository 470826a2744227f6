"""The command `recover`: continues a halted partition from what the log still holds, as a person decides.

It writes new positions, and the numbers from which outputs continue, to the changelog in one transaction. Everything
else in the changelog stays as it is. Nothing is written without `--apply`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from confluent_kafka import ConsumerGroupState, KafkaException, TopicPartition

from shared.adapters.kafka_clients import build_admin, build_consumer, build_producer
from shared.adapters.kafka_errors import to_error
from shared.adapters.log_lookup import KafkaLogRanges
from shared.errors import LoopwrightError, Rejected
from shared.records import Record
from shared.stream.config import EngineConfig
from shared.stream.continuity import changelog_loss, positions_loss
from shared.stream.log_history import READ_TIMEOUT_S, LogHistory
from shared.stream.partition import Positions
from shared.stream.state_store import POSITIONS_KEY
from shared.stream.topic_checks import TopicInspector

CALL_TIMEOUT_S = 15.0
SOURCES: Final = ("changelog", "group", "inputs-earliest", "inputs-latest")
_NO_MEMBERS = (ConsumerGroupState.EMPTY, ConsumerGroupState.DEAD)


class Numbering(Protocol):
    """How a service numbers the records of one output topic from its state."""

    topic: str
    processed_once: frozenset[str]
    """Inputs that `inputs-earliest` skips, because their records must not be processed twice."""

    def is_needed(self, key: bytes) -> bool:
        """Return whether `writes` needs the state under this key."""

    def writes(self, records: Iterable[Record], state: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        """Return the state to write so that numbers continue above those of `records`, all of one partition."""


@dataclass(frozen=True, slots=True)
class RecoveryPlan:
    """What `recover` writes for one partition."""

    partition: int
    reason: str
    """Why the partition is halted; empty if it is not."""
    positions: Positions
    before: Positions | None
    writes: dict[bytes, bytes] = field(default_factory=dict)

    def describe(self) -> Iterator[str]:
        """Yield lines for people."""
        yield f"partition {self.partition}: {self.reason or 'nothing is wrong: it is not halted'}"
        old = self.before.offsets if self.before else {}
        for topic, offset in sorted(self.positions.offsets.items()):
            yield f"  {topic}: continue at offset {offset} (state: {old.get(topic, 'none')})"
        for key, value in self.writes.items():
            yield f"  state {key.decode(errors='replace')}: {value.decode(errors='replace')[:200]}"


def plan_positions(
    source: str,
    bounds: Mapping[str, tuple[int, int]],
    topic_ids: Mapping[str, str],
    logged: Positions | None,
    committed: Mapping[str, int],
    changelog_low: int,
    processed_once: frozenset[str] = frozenset(),
) -> Positions:
    """Return the positions from which a partition continues. Pure.

    A position that is not in the log, or that belongs to a topic that was created again, becomes the earliest one.

    Args:
        source: One of `SOURCES`.
        bounds: First and next offset of each input.
        topic_ids: Ids of inputs and changelog now.
        logged: Newest positions in the changelog.
        committed: The group's offsets.
        changelog_low: First offset of the changelog.
        processed_once: Inputs that `inputs-earliest` skips.

    Raises:
        Rejected: if the source has no positions.

    """
    chosen = {"changelog": logged.offsets if logged else None, "group": committed or None}.get(source, {})
    if chosen is None:
        raise Rejected(
            f"--from {source}: there are no positions. Choose --from inputs-earliest, which processes everything in "
            "the inputs again, or --from inputs-latest, which skips it."
        )
    offsets = {}
    for topic, (low, high) in bounds.items():
        known = logged.topics.get(topic, topic_ids[topic]) if logged else topic_ids[topic]
        offset = chosen.get(topic, low)
        offsets[topic] = offset if known == topic_ids[topic] and low <= offset <= high else low
        if source == "inputs-latest" or (source == "inputs-earliest" and topic in processed_once):
            offsets[topic] = high
    return Positions(
        offsets=offsets,
        time_ms=logged.time_ms if logged else 0,
        rereads=dict(logged.rereads) if logged else {},
        topics=dict(topic_ids),
        changelog_start=changelog_low,
        recoveries=(logged.recoveries if logged else 0) + 1,
    )


class Recovery:
    """Plans and writes the recovery of single partitions. The engine's processes must be stopped."""

    def __init__(self, config: EngineConfig, numbering: Numbering) -> None:
        self._config = config
        self._numbering = numbering
        self._history = LogHistory(config)
        self._ranges = KafkaLogRanges(
            config.kafka, config.service or config.application, timeout_s=READ_TIMEOUT_S
        )

    def plan(self, partition: int, source: str) -> RecoveryPlan:
        """Return what to write. Raises `Rejected`, `Misconfigured` or `BrokerUnavailable`."""
        config = self._config
        try:
            topics = TopicInspector(config).inspect()
        except KafkaException as error:
            raise to_error(error.args[0]) from error
        topic_ids = {topic: found.topic_id for topic, found in topics.items()}
        all_bounds = {topic: self._ranges.bounds(topic) for topic in (*config.inputs, config.changelog)}
        if partition not in all_bounds[config.changelog]:
            raise Rejected(
                f"--partition {partition}: there are partitions 0 to {len(all_bounds[config.changelog]) - 1}."
            )
        bounds = {topic: all_bounds[topic][partition] for topic in config.inputs}
        low, high = all_bounds[config.changelog][partition]
        logged = self._history.newest_positions(partition, low, high)
        committed = self._committed(partition)
        used = self._history.used_outputs([partition])[partition] if logged is None else []
        reason = changelog_loss(config.changelog, topic_ids[config.changelog], low, logged, None)
        reason = reason or positions_loss(config.inputs, topic_ids, logged, committed, used)
        reason = reason or _outside(bounds, logged)
        once = self._numbering.processed_once
        positions = plan_positions(source, bounds, topic_ids, logged, committed, low, once)
        writes = self._numbering.writes(self._numbered_records(partition), self._needed_state(partition))
        return RecoveryPlan(partition, reason or "", positions, logged, writes)

    def apply(self, plan: RecoveryPlan) -> None:
        """Write a plan in one transaction. Raises `Rejected` if a process of the engine is running."""
        config = self._config
        self._require_stopped()
        settings = config.producer_settings()
        producer = build_producer(
            config.kafka,
            settings
            | {"transactional.id": f"{config.application}-recovery", "transaction.timeout.ms": 30_000},
        )
        try:
            producer.init_transactions(CALL_TIMEOUT_S)
            producer.begin_transaction()
            for key, value in {**plan.writes, POSITIONS_KEY: plan.positions.encode()}.items():
                producer.produce(config.changelog, value, key, plan.partition)
            with closing(build_consumer(config.kafka, config.consumer_settings())) as consumer:
                offsets = [
                    TopicPartition(topic, plan.partition, offset)
                    for topic, offset in plan.positions.offsets.items()
                ]
                producer.send_offsets_to_transaction(
                    offsets, consumer.consumer_group_metadata(), CALL_TIMEOUT_S
                )
                producer.commit_transaction(CALL_TIMEOUT_S)
        except KafkaException as error:
            raise to_error(error.args[0]) from error

    def _require_stopped(self) -> None:
        admin, group = (
            build_admin(self._config.kafka, self._config.admin_settings()),
            self._config.application,
        )
        try:
            found = admin.describe_consumer_groups([group], request_timeout=CALL_TIMEOUT_S)[group].result()
        except KafkaException as error:
            if error.args[0].name() == "GROUP_ID_NOT_FOUND":
                return
            raise to_error(error.args[0]) from error
        if found.state not in _NO_MEMBERS:
            raise Rejected(
                f"the group {group} has {len(found.members)} running members: stop every process of "
                f"{self._config.service or group} first, so that none of them writes the state at the same time."
            )

    def _committed(self, partition: int) -> dict[str, int]:
        with closing(build_consumer(self._config.kafka, self._config.consumer_settings())) as consumer:
            wanted = [TopicPartition(topic, partition) for topic in self._config.inputs]
            try:
                found = consumer.committed(wanted, timeout=CALL_TIMEOUT_S)
            except KafkaException as error:
                raise to_error(error.args[0]) from error
        return {each.topic: each.offset for each in found if each.offset >= 0}

    def _numbered_records(self, partition: int) -> Iterator[Record]:
        topic = self._numbering.topic
        bounds = self._ranges.bounds(topic).get(partition)
        return iter(()) if bounds is None else self._ranges.read(topic, {partition: bounds})

    def _needed_state(self, partition: int) -> dict[bytes, bytes]:
        """Return the newest values of the needed keys in the changelog."""
        state: dict[bytes, bytes] = {}
        bounds = self._ranges.bounds(self._config.changelog)[partition]
        for record in self._ranges.read(self._config.changelog, {partition: bounds}):
            key = record.key or b""
            if not self._numbering.is_needed(key):
                continue
            if record.value is None:
                state.pop(key, None)
            else:
                state[key] = record.value
        return state


def _outside(bounds: Mapping[str, tuple[int, int]], logged: Positions | None) -> str | None:
    if logged is None:
        return None
    for topic, (low, high) in bounds.items():
        offset = logged.offsets.get(topic)
        if offset is not None and not low <= offset <= high:
            return (
                f"the position {offset} in {topic} is not in the log, which has the offsets {low} to {high}"
            )
    return None


# --- command line -------------------------------------------------------------------------------------------------


def add_recover_command(commands: Any, group: str) -> None:
    """Add `recover` to the subcommands of an argument parser."""
    parser = commands.add_parser(
        "recover",
        help="Continue a halted partition from what the log still holds.",
        description="Continue a halted partition from what the log still holds. Prints what would be written; "
        "--apply writes it. Stop every process of the service first.",
    )
    parser.add_argument("--partition", type=int, required=True, metavar="N", help="The halted partition.")
    parser.add_argument(
        "--from",
        dest="source",
        choices=SOURCES,
        required=True,
        help=f"changelog: continue at the positions of the state. group: continue at the offsets of the group {group}, "
        "which you may have set. inputs-earliest: process everything in the inputs again; outcomes are repeated. "
        "inputs-latest: skip everything in the inputs; feedback in it is lost.",
    )
    parser.add_argument("--apply", action="store_true", help="Write it; without this, only print it.")


def run_recover(
    options: argparse.Namespace, config: Callable[[], EngineConfig], numbering: Numbering
) -> None:
    """Run the command: print the plan and, with `--apply`, write it. Exits with status 1 after an error."""
    write = sys.stdout.write
    try:
        recovery = Recovery(config(), numbering)
        plan = recovery.plan(options.partition, options.source)
        write("".join(f"{line}\n" for line in plan.describe()))
        if not options.apply:
            write("nothing was written; add --apply to write this\n")
            return
        recovery.apply(plan)
        write("written: start the service again\n")
    except (LoopwrightError, KafkaException) as error:
        sys.exit(f"recover: {error}")
