"""The engine: a pure step over keyed state, run exactly once over co-partitioned topics (design section 5).

One thread, one consumer, one transactional producer. A turn of the loop reads, and when a slice is due runs it in one
transaction. The consumer is never asked while a transaction is open, so rebalances find none.

Correctness rests on four facts. Outputs, changelog, dead letters and positions are in one transaction. A former owner
cannot add to them, as the group's generation and the transactional.id fence it. A new owner reads the changelog to
its high watermark with a read_committed reader, so that every transaction of a former owner is decided before it
starts. And the store is written only after the commit, with the changelog position it reflects.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable

import structlog
from confluent_kafka import KafkaException

from shared.adapters.clock import SystemClock
from shared.errors import DeadLetterFlood, Fatal, Retryable
from shared.ports import Clock
from shared.stream.config import EngineConfig
from shared.stream.engine_status import EngineState, EngineStatus, PartitionStatus
from shared.stream.inputs import InputConsumer
from shared.stream.offsets import Positions
from shared.stream.output_rereader import RECORDS_PER_SLICE, OutputRereader
from shared.stream.partition import OwnedPartition, PartitionSlice
from shared.stream.restore import Restorer
from shared.stream.slice_runner import CommitStats, Probe, SliceRunner
from shared.stream.state_store import MemoryStore, OpenStore, StoreFailed
from shared.stream.step import RereadingStep, Step
from shared.stream.transaction import ClientsUnusable, TransactionAborted, TransactionalProducer

log = structlog.get_logger(__name__)

GC_THRESHOLD = 100_000
"""New objects after which Python looks for reference cycles; its own default is 700."""
READ_TIMEOUT_S = 0.02
"""The client returns only with all records asked for, or after the whole of this time."""
STATUS_INTERVAL_S = 0.5
RETRY_INTERVAL_S = 0.5


class Engine:
    """Runs `step` until told to stop. Construct, call `run` once; the views may be read from other threads."""

    def __init__(
        self,
        config: EngineConfig,
        step: Step | RereadingStep,
        *,
        open_store: OpenStore = MemoryStore,
        clock: Clock | None = None,
        on_commit: Callable[[CommitStats], None] | None = None,
        on_abort: Callable[[str], None] | None = None,
        probe: Probe | None = None,
    ) -> None:
        """Connects to nothing yet.

        `clock` stamps ticks. `on_commit`, `on_abort` are called in the engine's thread. `probe` is called with the
        name of each phase: before_transaction, after_produce, after_commit, after_store, during_restore.
        """
        self.config = config
        self._open_store = open_store
        self._clock = clock or SystemClock()
        self._on_commit = on_commit
        self._on_abort = on_abort
        self._probe: Probe = probe or (lambda _phase: None)
        self._status = EngineStatus()
        self._stop = threading.Event()
        self._owned: dict[int, OwnedPartition] = {}
        self._to_restore: list[int] | None = None
        self._restore: Restorer | None = None
        self._restoring: dict[int, OwnedPartition] = {}
        self._committed: dict[int, dict[str, int]] = {}
        self._slice_runner = SliceRunner(config, step, self._clock, self._probe)
        self._turn_of = 0
        self._next_slice = 0.0
        self._next_view = 0.0
        self._backlog = False
        self._member = False
        self._away = False

    @property
    def state(self) -> EngineState:
        """See `EngineState`."""
        return self._status.state()[0]

    @property
    def reason(self) -> str:
        """What it waits for, or why it stands still; for `/readyz`."""
        return self._status.state()[1]

    @property
    def ready(self) -> bool:
        """Whether records are processed as they come."""
        return self._status.state()[0] == "running"

    def partitions(self) -> tuple[PartitionStatus, ...]:
        """The partitions owned at present."""
        return self._status.partitions()

    def run(self, stop: threading.Event) -> None:
        """Works until `stop` is set, then leaves the group and returns.

        After too many dead letters it leaves the group, says so in `state` and `reason`, and stands until `stop` is
        set. Raises `Fenced`, `Misconfigured`, `Fatal` where this process cannot go on. Where a store cannot be read or
        written it begins anew, until it can be. Meanwhile Python's collector of reference cycles looks less often,
        in the whole process: among so many records, which are freed without it, it took a fifth of all time.
        """
        before = gc.get_threshold()
        gc.set_threshold(max(before[0], GC_THRESHOLD), *before[1:])
        try:
            self._run(stop)
        finally:
            gc.set_threshold(*before)

    def _run(self, stop: threading.Event) -> None:
        self._stop = stop
        while not stop.is_set():
            try:
                self._work()
            except (ClientsUnusable, StoreFailed) as trouble:
                log.warning("starting anew", application=self.config.application, reason=str(trouble))
                self._wait_for(f"starting anew: {trouble}")
                stop.wait(RETRY_INTERVAL_S)
        self._say("stopped")

    def _work(self) -> None:
        """One life of the clients. `Unresolved` or `StoreFailed` ends it; the next one learns from the log what was
        committed."""
        self._inputs = InputConsumer(self.config)
        self._rereader = OutputRereader(self.config)
        self._producer = TransactionalProducer(self.config.producer_settings(), self._stop, self._wait_for)
        self._inputs.before_revoke = self._producer.wait_for_commit
        self._slice_runner.use_producer(self._producer)
        try:
            if self._start():
                while not self._stop.is_set():
                    self._turn()
        except DeadLetterFlood as flood:
            self._halt(flood)
        except (ClientsUnusable, StoreFailed):
            raise
        except Exception as error:
            self._say("failed", str(error))
            raise
        finally:
            self._close()

    def _halt(self, flood: DeadLetterFlood) -> None:
        self._say("halted", str(flood))
        log.critical("halted", application=self.config.application, reason=str(flood))
        try:
            self._producer.abort()
        except (Fatal, ClientsUnusable) as error:  # the broker aborts it, after its time
            log.warning("not aborted", application=self.config.application, reason=str(error))
        self._close()
        self._stop.wait()

    def _start(self) -> bool:
        """Topics checked, identity taken, group joined. False if stopped meanwhile."""
        self._say("starting")
        while not self._stop.is_set():
            try:
                self._inputs.check_topics()
                break
            except Retryable as missing:
                self._wait_for(f"for {missing}")
            except KafkaException as error:
                self._wait_for(f"for Kafka at {self.config.bootstrap_servers}: {error.args[0].str()}")
            self._stop.wait(RETRY_INTERVAL_S)
        if self._stop.is_set() or not self._producer.start():
            return False
        self._inputs.join()
        self._say("starting", "joining the group")
        return True

    def _turn(self) -> None:
        """Read, and run a slice if one is due. Acts on a rebalance first, so that nothing is run for others."""
        if self._inputs.revoke_reason is not None:
            self._drop(self._inputs.revoke_reason)
        if self._inputs.assigned is not None:
            self._to_restore, self._inputs.assigned = self._inputs.assigned, None
        if self._to_restore is not None:
            self._restore_on(self._to_restore)
            return
        size = self._slice_runner.size.records
        if not self._backlog:  # else what was read during the commit is enough for a slice
            self._inputs.read(self._owned, self.config.slice_records, READ_TIMEOUT_S)
        if self._inputs.revoke_reason is not None or self._inputs.assigned is not None:
            return
        self._rereader.advance(self._owned)
        now = time.monotonic()
        waiting = sum(partition.merge_buffer.count() for partition in self._owned.values())
        if self._backlog or now >= self._next_slice or waiting >= size:
            self._next_slice = now + self.config.commit_interval
            shares = self._take(size, now)
            self._backlog = sum(len(share.records) for share in shares) >= size
            if shares:
                self._run_slice(shares)
            self._inputs.resume_drained(self._owned)
        if now >= self._next_view:
            self._look(now)

    def _take(self, size: int, now: float) -> list[PartitionSlice]:
        """The next slice: each partition an equal part of what the others leave, a different one first each time."""
        numbers = sorted(self._owned)
        turn = self._turn_of % len(numbers) if numbers else 0
        shares, weight_left = [], self.config.slice_bytes
        size, reread = self._parts(size)
        for place, number in enumerate(numbers[turn:] + numbers[:turn]):
            parts = len(numbers) - place
            share = self._owned[number].take_slice(
                -(-size // parts),
                -(-weight_left // parts),
                now=now,
                clock_ms=self._clock.now_ms(),
                tick_interval=self.config.tick_interval,
                reread=-(-reread // parts),
            )
            size -= len(share.records)
            reread -= len(share.reread_records)
            if share.records or share.reread_records or share.completed_rereads or share.tick:
                shares.append(share)
        return shares

    def _parts(self, size: int) -> tuple[int, int]:
        """How much of a slice goes to the inputs and to what is read again. Where slices were halved to find a record
        that breaks them, they take turns, as it may be among either."""
        owned = self._owned.values()
        if not any(reading.has_work for partition in owned for reading in partition.reread_cursors.values()):
            return size, 0
        if size >= 2 * RECORDS_PER_SLICE * len(owned):
            return size, RECORDS_PER_SLICE * len(owned)
        inputs_wait = any(partition.merge_buffer.count() for partition in owned)
        return (size, 0) if inputs_wait and self._turn_of % 2 else (0, size)

    def _run_slice(self, shares: list[PartitionSlice]) -> None:
        try:
            commit = self._transact(shares)
        except TransactionAborted as aborted:
            log.warning("transaction aborted", application=self.config.application, reason=str(aborted))
            if self._on_abort is not None:
                self._on_abort(str(aborted))
            self._backlog = False
            self._stop.wait(min(1.0, 0.02 * 2**self._slice_runner.size.aborts))
            return
        self._turn_of += 1
        if commit is not None:
            if self.state == "waiting":
                self._say("running")
            if self._on_commit is not None:
                self._on_commit(commit)

    def _transact(self, shares: list[PartitionSlice]) -> CommitStats | None:
        return self._slice_runner.run(shares, self._inputs.group_metadata(), self._read_on)

    def _read_on(self) -> None:
        """While the broker commits. A rebalance that is met here waits for the commit, and is acted on after it."""
        self._inputs.read(self._owned, self.config.slice_records, 0.0)

    def _restore_on(self, numbers: list[int]) -> None:
        """A part of the restore, then back to the group, which may want to rebalance again."""
        try:
            if self._restore is None:
                self._committed = self._inputs.committed_offsets(numbers)
                for n in numbers:
                    self._restoring[n] = OwnedPartition(n, self.config, self._open_store(n))
                stores = {n: partition.store for n, partition in self._restoring.items()}
                self._restore = Restorer(self.config, stores, self._clock)
            self._restore.advance()
            self._say("restoring", self._restore.describe_progress())
            self._probe("during_restore")
            if self._restore.done:
                self._begin()
        except (KafkaException, Retryable) as error:
            self._end_restore()
            text = error.args[0].str() if isinstance(error, KafkaException) else str(error)
            self._wait_for(f"to restore: {text}")
            self._stop.wait(RETRY_INTERVAL_S)
        self._inputs.read(self._owned, 1, 0.0)

    def _begin(self) -> None:
        """The state is whole: go on from the positions that belong to it."""
        for number, partition in self._restoring.items():
            partition.positions = self._reconcile(number, partition.restored_positions())
        self._owned, self._restoring = self._restoring, {}
        self._end_restore()
        self._to_restore = None
        self._inputs.start_reading({n: p.positions.offsets for n, p in self._owned.items()})
        self._member = True
        self._look(time.monotonic())
        self._say("running", "" if self._owned else "no partition is assigned to this process")
        log.info("assigned", application=self.config.application, partitions=sorted(self._owned))

    def _reconcile(self, number: int, restored: Positions | None) -> Positions:
        """The group's positions where it has any, else the changelog's. Both were written in one transaction, so
        they differ only where the group's expired, or a person has set them."""
        committed = self._committed.get(number, {})
        if restored is None:
            return Positions(dict(committed))
        if any(restored.offsets.get(topic) != offset for topic, offset in committed.items()):
            log.warning(
                "positions were set from outside: the group's are not those of the state",
                application=self.config.application,
                partition=number,
                group=committed,
                state=restored.offsets,
            )
        return Positions(restored.offsets | committed, restored.time_ms, restored.rereads)

    def _end_restore(self) -> None:
        if self._restore is not None:
            self._restore.close()
            self._restore = None
        for partition in self._restoring.values():
            partition.close()
        self._restoring = {}

    def _drop(self, why: str) -> None:
        """Partitions were revoked or lost; what was read of them and not committed is their next owner's."""
        log.info("unassigned", application=self.config.application, partitions=sorted(self._owned), why=why)
        self._inputs.revoke_reason = None
        self._to_restore = None
        self._end_restore()
        self._rereader.close()
        for partition in self._owned.values():
            partition.close()
        self._owned = {}
        self._backlog = self._member = False
        self._status.set_partitions(())
        self._say("starting", f"partitions {why}; waiting for the group")

    def _look(self, now: float) -> None:
        """Refreshes what others see, and asks whether a broker that was away is back."""
        self._next_view = now + STATUS_INTERVAL_S
        self._status.set_partitions(tuple(self._view_of(partition) for _, partition in sorted(self._owned.items())))
        if self._inputs.last_error is not None and not self._inputs.broker_answers():
            self._away = True
            self._wait_for(f"for Kafka at {self.config.bootstrap_servers}: {self._inputs.last_error}")
        elif self._away:
            # The client keeps the coordinators of before, and may wait for them for ever: begin with new clients.
            raise ClientsUnusable("Kafka was away.")
        elif self.state == "waiting":
            self._say(*(("running", "") if self._member else ("starting", "joining the group")))

    def _view_of(self, partition: OwnedPartition) -> PartitionStatus:
        offsets, lag = partition.positions.offsets, {}
        for topic in self.config.inputs:
            end = self._inputs.high_watermark(topic, partition.number)
            if end is not None:
                lag[topic] = max(0, end - offsets.get(topic, 0))
        return PartitionStatus(
            partition=partition.number,
            positions=dict(offsets),
            lag=lag,
            keys=partition.store.key_count(),
            size_bytes=partition.store.size_bytes(),
            records=partition.records,
            dead_letters=partition.dead_letters,
            time_ms=partition.positions.time_ms,
            last_commit_ms=partition.last_commit_ms,
            rereads=dict(partition.positions.rereads),
        )

    def _wait_for(self, what: str) -> None:
        self._say("waiting", what)

    def _say(self, state: EngineState, reason: str = "") -> None:
        before = self.state
        if self._status.set_state(state, reason) and before != state:
            log.info("engine", application=self.config.application, state=state, reason=reason)

    def _close(self) -> None:
        """Leaves the group and drops what is not committed. May be called twice."""
        self._end_restore()
        self._to_restore = None
        for partition in self._owned.values():
            partition.close()
        self._owned = {}
        self._backlog = self._member = self._away = False
        self._status.set_partitions(())
        self._rereader.close()
        self._inputs.close()
        self._producer.close()
