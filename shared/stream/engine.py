"""Engine: runs a pure step over keyed state exactly once, on co-partitioned Kafka topics.

There is one thread, one consumer and one transactional producer. Each iteration of the loop reads records and, when a
slice is due, runs it in one transaction. Rebalances happen only while the consumer reads: between slices, or during a
commit, for which they wait. So no rebalance finds a half-processed slice.

Exactly-once rests on four facts:

- Outputs, changelog, dead letters and consumed positions are in one transaction.
- A former owner of a partition cannot add to them: the group's generation and the `transactional.id` fence it.
- A new owner reads the changelog to its high watermark with a read_committed consumer. So every transaction of a former
  owner is decided before the new one starts.
- The store is written only after the commit, together with the changelog position that it reflects.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Literal

import structlog
from confluent_kafka import KafkaError, KafkaException

from shared.adapters.clock import SystemClock
from shared.adapters.kafka_errors import EXPLAINED, describe_refusal
from shared.dead_letters import Skipped
from shared.errors import Retryable
from shared.ports import Clock
from shared.records import Output
from shared.stream.config import EngineConfig
from shared.stream.continuity import halt_message, positions_loss
from shared.stream.engine_status import EngineState, EngineStatus, PartitionStatus
from shared.stream.inputs import InputConsumer, TopicMissing
from shared.stream.log_history import LogHistory
from shared.stream.output_rereader import RECORDS_PER_SLICE, OutputRereader
from shared.stream.partition import OwnedPartition, PartitionSlice, Positions
from shared.stream.restore import Restorer
from shared.stream.slice_runner import CommitStats, Probe, SliceRunner
from shared.stream.state_store import MemoryStore, OpenStore, StoreFailed
from shared.stream.step import RereadingStep, Step
from shared.stream.topic_checks import FIX, TopicDescription, TopicInspector
from shared.stream.transaction import ClientsUnusable, TransactionAborted, TransactionalProducer
from shared.telemetry import ENGINE_HALTS, ENGINE_SKIPS

log = structlog.get_logger(__name__)

GC_THRESHOLD = 100_000
"""Number of new objects after which Python looks for reference cycles; its default is 700."""
MAX_STORE_FAILURES = 5
"""After this many failures of a store in a row, without a commit, the process leaves the group."""
STAY_OUT_S, MAX_STAY_OUT_S = 15.0, 600.0
"""How long it stays outside before it opens the store again, at first and at most."""
READ_TIMEOUT_S = 0.02
"""The client returns when it has all requested records, or after this time."""
STATUS_INTERVAL_S = 0.5
RETRY_INTERVAL_S, MAX_RETRY_INTERVAL_S = 0.5, 10.0
"""Time between two attempts, and its upper bound while new clients keep failing: each attempt moves partitions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkipRequest:
    """Request of a person to continue a halted partition without the record at which it stopped."""

    command_id: str
    topic: str
    partition: int
    offset: int
    why: str
    """Who decided it and why, for the dead letter."""
    result: Callable[[Literal["done", "refused"], str], Output]
    """Returns the record that reports the result, with a message."""
    refusal: str | None = None
    """Why the request must be refused whatever the partition's state."""
    may_refuse: bool = True
    """Whether the request may be refused yet."""


class Engine:
    """Runs `step` until a stop is requested.

    Construct it and call `run` once. The properties and `partitions` may be read from any thread.
    """

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
        """Prepare the engine; `run` connects it.

        `clock` measures the time between ticks, and is compared with the broker's. `on_commit` and `on_abort` (with the
        reason) are called in the engine's thread. `probe` is a test hook, called with the name of each phase:
        before_transaction, after_produce, after_commit, after_store, during_restore.
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
        self._active: dict[int, OwnedPartition] = {}
        """The owned partitions that are not halted."""
        self._to_restore: list[int] | None = None
        self._restorer: Restorer | None = None
        self._restoring: dict[int, OwnedPartition] = {}
        self._committed_offsets: dict[int, dict[str, int]] = {}
        self._topics: dict[str, TopicDescription] = {}
        self._history = LogHistory(config)
        self._service = config.service or config.application
        self._slice_runner = SliceRunner(config, step, self._clock, self._probe)
        self._slice_count = 0
        self._next_slice = 0.0
        self._next_status = 0.0
        self._backlog = False
        self._in_group = False
        self._broker_unreachable = False
        self._restart_reason = ""
        self._restarts = 0
        """How many times in a row new clients were needed, without a commit in between."""
        self._skip_requests: SimpleQueue[SkipRequest] = SimpleQueue()
        self._answered: set[str] = set()
        """Commands whose results this process has written."""
        self._store_failures = 0
        """How many times in a row a store failed, without a commit in between."""
        self._opened_store = 0
        """Partition whose store was opened last."""
        self._blocked = False
        """Whether transactions are aborted until a person acts; the state says what they have to do."""

    @property
    def state(self) -> EngineState:
        """Current state."""
        return self._status.state()[0]

    @property
    def reason(self) -> str:
        """What the engine waits for, or why it is not running; empty otherwise."""
        return self._status.state()[1]

    @property
    def ready(self) -> bool:
        """Whether records are processed as they arrive."""
        return self._status.state()[0] == "running"

    def partitions(self) -> tuple[PartitionStatus, ...]:
        """Return the status of the owned partitions."""
        return self._status.partitions()

    @property
    def clock_check(self) -> str:
        """Whether this host's clock and the broker's agree: a text that begins with "ok" unless ticks are off."""
        return self._status.clocks()

    @property
    def restored_ratio(self) -> float:
        """Share of the changelog that the restore in progress has read; 1 if there is none."""
        return self._status.restored()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should look at although records are processed."""
        problems = [f"partition {p.partition}: {p.problem}" for p in self.partitions() if p.problem]
        dead_letters = self._status.dead_letters(self._clock.monotonic())
        return (*([dead_letters] if dead_letters else []), *problems)

    def request_skip(self, request: SkipRequest) -> None:
        """Ask to skip the record at which a partition halted. Thread-safe.

        If this process owns the partition, the record's dead letter and the result are written in one transaction.
        The request is forgotten otherwise, or if that fails: ask again until the result is in the log.
        """
        self._skip_requests.put(request)

    def run(self, stop: threading.Event) -> None:
        """Run until `stop` is set, then leave the group and return.

        Unreachable brokers, missing topics, missing permissions and failing stores are retried until they recover. A
        partition with too many unexpected errors halts, and the others go on; `state` is then "halted" with the
        reason. Raises `Fenced`, `Misconfigured` or `Fatal` if this process cannot continue.

        While the engine runs, the garbage collector of the whole process looks for reference cycles less often: with
        tens of thousands of buffered records, which are freed without it, it took a fifth of the time.
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
                self._run_session()
            except (ClientsUnusable, StoreFailed) as error:
                self._store_failures += isinstance(error, StoreFailed)
                if isinstance(error, StoreFailed) and self._store_failures >= MAX_STORE_FAILURES:
                    self._stay_out(error)
                    continue
                log.warning("restarting clients", application=self.config.application, reason=str(error))
                self._restart_reason = f"to restart: {error}"
                self._set_waiting(self._restart_reason)
                stop.wait(min(MAX_RETRY_INTERVAL_S, RETRY_INTERVAL_S * 2**self._restarts))
                self._restarts = min(self._restarts + 1, 10)
        self._set_state("stopped")

    def _stay_out(self, error: StoreFailed) -> None:
        """Stay outside the group until a store can be opened, so that other members take over the partitions."""
        partition, seconds = self._opened_store, STAY_OUT_S
        log.error("left the group", application=self.config.application, reason=str(error))
        while not self._stop.is_set():
            self._set_waiting(
                f"outside the group, so that other members take the partitions over, because a store failed: {error} "
                f"The next attempt is in {seconds:.0f} s."
            )
            self._stop.wait(seconds)
            seconds = min(MAX_STAY_OUT_S, 2 * seconds)
            try:
                self._open_store(partition).close()
            except StoreFailed as again:
                error = again
            else:
                break
        # If it fails again after it has joined, once is enough to leave.
        self._store_failures = MAX_STORE_FAILURES - 1
        self._restart_reason = ""

    def _run_session(self) -> None:
        """Run with one set of Kafka clients, until a stop request or an error.

        `ClientsUnusable` and `StoreFailed` end the session. The next one learns from the log what was committed.
        """
        self._inputs = InputConsumer(self.config, self._clock)
        self._inspector = TopicInspector(self.config)
        self._rereader = OutputRereader(self.config)
        self._producer = TransactionalProducer(
            self.config.kafka, self.config.producer_settings(), self._stop, self._set_waiting
        )
        self._inputs.before_revoke = self._producer.wait_for_commit
        self._slice_runner.use_producer(self._producer)
        try:
            if self._start():
                while not self._stop.is_set():
                    self._iterate()
        except (ClientsUnusable, StoreFailed):
            raise
        except Exception as error:
            self._set_state("failed", str(error))
            raise
        finally:
            self._close()

    def _start(self) -> bool:
        """Check the topics, take over the `transactional.id`, and join the group. Returns False if stopped."""
        self._set_state(*(("waiting", self._restart_reason) if self._restart_reason else ("starting", "")))
        while not self._stop.is_set():
            try:
                self._inputs.check_topics()
                topics = self._inspector.inspect()
                self._inputs.unverified = frozenset(
                    t for t, found in topics.items() if found.settings is None
                )
                break
            except TopicMissing as missing:
                self._set_waiting(f"for {missing}")
            except Retryable as refused:
                self._set_waiting(str(refused))
            except KafkaException as error:
                text = error.args[0].str()
                self._set_waiting(
                    text
                    if text.startswith(EXPLAINED)
                    else f"for Kafka at {self.config.kafka.servers}: {text}"
                )
            self._stop.wait(RETRY_INTERVAL_S)
        if self._stop.is_set() or not self._producer.start():
            return False
        self._inputs.join()
        if not self._restart_reason:
            self._set_state("starting", "joining the group")
        return True

    def _iterate(self) -> None:
        """Read, and run a slice if one is due. Acts on a rebalance first: revoked partitions must not be processed."""
        if self._inputs.revoke_reason is not None:
            self._release_partitions(self._inputs.revoke_reason)
        if self._inputs.assigned is not None:
            self._to_restore, self._inputs.assigned = self._inputs.assigned, None
        if self._to_restore is not None:
            self._continue_restore(self._to_restore)
            return
        if not self._skip_requests.empty():
            self._answer_skip(self._skip_requests.get())
        size = self._slice_runner.size.records
        if not self._backlog:  # with a backlog, the records read during the last commit fill a slice
            self._inputs.read(self._active, self.config.slice_records, READ_TIMEOUT_S)
        if self._inputs.revoke_reason is not None or self._inputs.assigned is not None:
            return
        self._halt_unreadable()
        self._rereader.advance(self._active)
        now = time.monotonic()
        waiting = sum(partition.merge_buffer.count() for partition in self._active.values())
        prepared = self._slice_runner.prepared
        if prepared or self._backlog or now >= self._next_slice or waiting >= size:
            self._next_slice = now + self.config.commit_interval
            parts = prepared or self._take_slice(size, self._clock.monotonic())
            self._backlog = sum(len(part.records) for part in parts) >= size
            if parts:
                self._run_slice(parts)
            self._inputs.resume_drained(self._active)
        if now >= self._next_status:
            self._halt_recreated(self._inspector.poll(now))
            self._update_status(now)

    def _take_slice(self, size: int, now: float) -> list[PartitionSlice]:
        """Return the next slice, divided equally between the partitions. A different one begins each time."""
        numbers = sorted(self._active)
        first = self._slice_count % len(numbers) if numbers else 0
        parts, bytes_left = [], self.config.slice_bytes
        size, reread_size = self._divide_slice(size)
        for index, number in enumerate(numbers[first:] + numbers[:first]):
            remaining = len(numbers) - index
            part = self._active[number].take_slice(
                -(-size // remaining),
                -(-bytes_left // remaining),
                now=now,
                clock_ms=self._clock.now_ms(),
                tick_interval=self.config.tick_interval,
                max_reread_records=-(-reread_size // remaining),
            )
            size -= len(part.records)
            reread_size -= len(part.reread_records)
            notified = part.completed_rereads or part.tick or part.measures_clock
            if part.records or part.reread_records or notified:
                parts.append(part)
        return parts

    def _divide_slice(self, size: int) -> tuple[int, int]:
        """Return how many input records and how many reread records the next slice may have.

        When slices were halved to find a record that aborts them, inputs and rereads take turns, because the record may
        be among either.
        """
        owned = self._active.values()
        if not any(cursor.has_work for partition in owned for cursor in partition.reread_cursors.values()):
            return size, 0
        if size >= 2 * RECORDS_PER_SLICE * len(owned):
            return size, RECORDS_PER_SLICE * len(owned)
        inputs_wait = any(partition.merge_buffer.count() for partition in owned)
        return (size, 0) if inputs_wait and self._slice_count % 2 else (0, size)

    def _answer_skip(self, request: SkipRequest) -> None:
        """Skip the record or refuse the request, and write the result in the same transaction."""
        partition = self._owned.get(request.partition)
        if partition is None or request.command_id in self._answered:
            return
        self._slice_runner.discard_prepared()
        position = f"{request.topic} {request.partition}-{request.offset}"
        is_there = partition.halted_at == (request.topic, request.offset)
        part = partition.take_halted_record() if is_there and request.refusal is None else None
        if part is not None:
            error = Skipped(f"{request.why} (it had halted: {partition.halted})")
            self._slice_runner.give_up((request.topic, request.partition, request.offset), error)
            part.outputs.append(request.result("done", f"skipped {position}; it is a dead letter now"))
        elif request.may_refuse:
            state = f"it is halted: {partition.halted}" if partition.halted else "it is not halted"
            refusal = (
                request.refusal or f"partition {request.partition} is not halted at this record: {state}"
            )
            part = partition.empty_slice()
            part.outputs.append(request.result("refused", f"{position} was not skipped: {refusal}"))
        else:
            return
        if not self._run_slice([part]):
            return
        self._answered.add(request.command_id)
        if part.records:
            partition.resume()
            ENGINE_SKIPS.labels(self.config.application).inc()
            self._active[partition.number] = partition
            # Records that arrived during the halt were not kept. Buffered ones are ignored when they come again.
            self._inputs.start_reading({n: p.positions.offsets for n, p in self._active.items()})
            for active in self._active.values():
                active.paused.clear()
            log.warning("partition resumed", application=self.config.application, skipped=position)
            self._set_running()

    def _run_slice(self, parts: list[PartitionSlice]) -> bool:
        """Run a slice. Returns False if its transaction was aborted."""
        try:
            commit = self._transact(parts)
        except TransactionAborted as aborted:
            log.warning("transaction aborted", application=self.config.application, reason=str(aborted))
            if self._on_abort is not None:
                self._on_abort(str(aborted))
            self._backlog = False
            if aborted.lasting:
                self._blocked = True
                self._set_waiting(str(aborted))
            self._stop.wait(min(1.0, 0.02 * 2**self._slice_runner.size.aborts))
            return False
        self._slice_count += 1
        for part in parts:
            if part.halt is not None:
                self._halt_partition(part.partition, part.halt.reason, part.halt.record)
        if commit is not None:
            self._status.add_dead_letters(
                len(commit.dead_letters), commit.newest_dead_letter, self._clock.monotonic()
            )
            self._blocked, self._restarts, self._store_failures = False, 0, 0
            if self.state == "waiting":
                self._set_running()
            if self._on_commit is not None:
                self._on_commit(commit)
        return True

    def _transact(self, parts: list[PartitionSlice]) -> CommitStats | None:
        return self._slice_runner.run(parts, self._inputs.group_metadata(), self._work_during_commit)

    def _work_during_commit(self) -> None:
        """Read while the broker commits, and pass the next slice through the step if there is a backlog.

        A rebalance in here waits for the commit; the engine acts on it afterwards.
        """
        self._inputs.read(self._active, self.config.slice_records, 0.0)
        if self._inputs.revoke_reason is not None or self._inputs.assigned is not None:
            return
        active, size = self._active.values(), self._slice_runner.size.records
        backlog = sum(partition.merge_buffer.count() for partition in active) >= size
        # A reread's progress is known only after the commit.
        if (
            backlog
            and self._slice_runner.can_prepare
            and not any(partition.rereading for partition in active)
        ):
            self._slice_runner.prepare(self._take_slice(size, self._clock.monotonic()))

    def _continue_restore(self, numbers: list[int]) -> None:
        """Restore for a moment, then poll the group, which may rebalance again."""
        try:
            if self._restorer is None:
                self._topics = self._inspector.inspect()
                self._committed_offsets = self._inputs.committed_offsets(numbers)
                for n in numbers:
                    self._opened_store = n
                    self._restoring[n] = OwnedPartition(n, self.config, self._open_store(n))
                stores = {n: partition.store for n, partition in self._restoring.items()}
                self._restorer = Restorer(self.config, stores, self._clock)
            self._restorer.advance()
            self._set_state("restoring", self._restorer.describe_progress())
            self._status.set_restored(self._restorer.ratio)
            self._probe("during_restore")
            if self._restorer.done:
                self._start_processing()
        except (KafkaException, Retryable) as error:
            self._end_restore()
            if isinstance(error, StoreFailed):
                self._store_failures += 1
                if self._store_failures >= MAX_STORE_FAILURES:
                    raise
            text = _describe_error(error) if isinstance(error, KafkaException) else str(error)
            self._set_waiting(f"to restore: {text}")
            self._stop.wait(RETRY_INTERVAL_S)
        self._inputs.read(self._active, 1, 0.0)

    def _start_processing(self) -> None:
        """Own the restored partitions, and read their inputs from the positions that belong to the state."""
        assert self._restorer is not None
        self._reconcile(self._restorer.losses)
        self._owned, self._restoring = self._restoring, {}
        self._end_restore()
        self._to_restore = None
        self._active = {n: p for n, p in self._owned.items() if p.halted is None}
        self._inputs.start_reading({n: p.positions.offsets for n, p in self._active.items()})
        self._in_group = True
        self._update_status(time.monotonic())
        self._restart_reason = ""
        self._set_running()
        log.info("assigned", application=self.config.application, partitions=sorted(self._owned))

    def _halt_partition(
        self, partition: OwnedPartition, reason: str, record: tuple[str, int] | None = None
    ) -> None:
        """Stop processing one partition until a person acts. Its state and positions stay as they are.

        `record` is the topic and offset at which it stopped, if a record is the reason.

        The process keeps the partition, so that it does not halt one member after the other, and processes the others.
        """
        partition.halted_at = record
        self._note_halt(partition, reason)
        self._active.pop(partition.number, None)
        self._inputs.pause(partition)
        self._publish_partitions()
        self._set_running()

    def _halt_unreadable(self) -> None:
        """Halt the partitions whose position is not in the log."""
        unreadable, self._inputs.unreadable = self._inputs.unreadable, {}
        for number, reason in unreadable.items():
            if number in self._active:
                self._halt_partition(self._active[number], halt_message(reason, self._service, number))

    def _halt_recreated(self, topics: Mapping[str, TopicDescription] | None) -> None:
        """Halt all partitions if a topic was replaced while they were processed."""
        if not topics or not self._topics:
            return
        recreated = [t for t, found in topics.items() if self._topics[t].topic_id != found.topic_id]
        for partition in list(self._active.values()) if recreated else ():
            reason = f"{', '.join(recreated)} was deleted and created again"
            self._halt_partition(partition, halt_message(reason, self._service, partition.number))

    def _note_halt(self, partition: OwnedPartition, reason: str) -> None:
        partition.halted = reason
        ENGINE_HALTS.labels(self.config.application).inc()
        log.critical(
            "partition halted",
            application=self.config.application,
            partition=partition.number,
            reason=reason,
        )

    def _reconcile(self, losses: Mapping[int, str]) -> None:
        """Give each restored partition its positions, or halt it if it may not go on from what the log holds.

        State and positions come from one record of the changelog. The group's offsets are in the same transaction; if
        they are behind, they expired or were set by hand, and do not count.
        """
        topic_ids = {topic: found.topic_id for topic, found in self._topics.items()}
        restored = {number: partition.restored_positions() for number, partition in self._restoring.items()}
        used_outputs = self._history.used_outputs(
            [n for n, positions in restored.items() if positions is None]
        )
        for number, partition in self._restoring.items():
            positions, committed = restored[number], self._committed_offsets.get(number, {})
            reason = losses.get(number) or positions_loss(
                self.config.inputs, topic_ids, positions, committed, used_outputs.get(number, ())
            )
            if reason is not None:
                self._note_halt(partition, halt_message(reason, self._service, number))
            partition.positions = positions or Positions()
            if any(partition.positions.offsets.get(topic) != offset for topic, offset in committed.items()):
                log.warning(
                    "group offsets differ from the state's positions, which count",
                    application=self.config.application,
                    partition=number,
                    group=committed,
                    state=partition.positions.offsets,
                )
            if reason is None:
                partition.positions.topics = topic_ids

    def _end_restore(self) -> None:
        if self._restorer is not None:
            self._restorer.close()
            self._restorer = None
            self._status.set_restored(1.0)
        for partition in self._restoring.values():
            partition.close()
        self._restoring = {}

    def _release_partitions(self, reason: str) -> None:
        """Close the partitions after they were revoked or lost. Their next owner reads uncommitted records again."""
        log.info(
            "unassigned", application=self.config.application, partitions=sorted(self._owned), reason=reason
        )
        self._inputs.revoke_reason = None
        self._slice_runner.discard_prepared()
        self._to_restore = None
        self._end_restore()
        self._rereader.close()
        for partition in self._owned.values():
            partition.close()
        self._owned, self._active = {}, {}
        self._backlog = self._in_group = False
        self._status.set_partitions(())
        self._set_state("starting", f"partitions {reason}; waiting for the group")

    def _update_status(self, now: float) -> None:
        """Publish the partitions' status, and check whether an unreachable broker answers again."""
        self._next_status = now + STATUS_INTERVAL_S
        self._publish_partitions()
        self._check_clocks()
        if self._inputs.last_error is not None and not self._inputs.broker_answers():
            self._broker_unreachable = True
            self._set_waiting(f"for Kafka at {self.config.kafka.servers}: {self._inputs.last_error}")
        elif self._broker_unreachable:
            # The old clients remember the former coordinators and may wait for them forever.
            raise ClientsUnusable("Kafka was unreachable")
        elif self.state != "waiting" or self._blocked or self._restart_reason:
            return
        elif self._in_group:
            self._set_running()
        else:
            self._set_state("starting", "joining the group")

    def _check_clocks(self) -> None:
        """Report whether this host's clock and the broker's agree."""
        wall_ms, now = self._clock.now_ms(), self._clock.monotonic()
        differences = {
            number: partition.clocks.difference_ms(wall_ms, now) or 0
            for number, partition in sorted(self._active.items())
            if partition.clocks.disagree(wall_ms, now)
        }
        agreed = self.clock_check.startswith("ok")
        if not differences:
            self._status.set_clocks(self._comparable_clocks(wall_ms, now))
            if not agreed:
                log.info("the clocks agree again", application=self.config.application)
            return
        worst = max(differences.values(), key=abs)
        self._status.set_clocks(
            f"ticks are off: this host's clock is {abs(worst) / 1000:.0f} s {'ahead of' if worst > 0 else 'behind'} "
            f"the broker's (partitions {', '.join(map(str, differences))}; limit "
            f"{self.config.max_clock_difference:.0f} s). Records are processed, but batches of idle partitions wait "
            "for the next record. Synchronize the clocks of this host and of the Kafka brokers (NTP); this ends by "
            "itself."
        )
        if agreed:
            log.error("the clocks disagree", application=self.config.application, detail=self.clock_check)

    def _comparable_clocks(self, wall_ms: int, now: float) -> str:
        measured = [p.clocks.difference_ms(wall_ms, now) for p in self._active.values() if p.clocks.measured]
        if None in measured:
            return f"ok, but not compared with the broker's: {self.config.changelog} has no append times; run `{FIX}`"
        return "ok"

    def _publish_partitions(self) -> None:
        self._status.set_partitions(
            tuple(self._partition_status(partition) for _, partition in sorted(self._owned.items()))
        )

    def _partition_status(self, partition: OwnedPartition) -> PartitionStatus:
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
            halted=partition.halted,
            oldest_ms=partition.merge_buffer.oldest_ms(),
            problem=partition.problem,
        )

    def _set_running(self) -> None:
        """Set the state to "running", or to "halted" with the reasons if an owned partition is halted."""
        halted = [
            f"partition {n}: {p.halted}" for n, p in sorted(self._owned.items()) if p.halted is not None
        ]
        if halted:
            self._set_state("halted", "; ".join(halted))
        else:
            self._set_state(
                "running", "" if self._owned else "standing by: other processes have all partitions"
            )

    def _set_waiting(self, reason: str) -> None:
        """Set the state to "waiting". `reason` completes the sentence "waiting ..."."""
        self._set_state("waiting", reason)

    def _set_state(self, state: EngineState, reason: str = "") -> None:
        before = self.state
        if self._status.set_state(state, reason) and before != state:
            log.info("engine", application=self.config.application, state=state, reason=reason)

    def _close(self) -> None:
        """Leave the group and drop uncommitted records. May be called twice."""
        self._slice_runner.discard_prepared()
        self._end_restore()
        self._to_restore = None
        for partition in self._owned.values():
            partition.close()
        self._owned, self._active = {}, {}
        self._backlog = self._in_group = self._broker_unreachable = self._blocked = False
        self._status.set_partitions(())
        self._rereader.close()
        self._inputs.close()
        self._producer.close()


def _describe_error(raised: KafkaException) -> str:
    error: KafkaError = raised.args[0]
    return describe_refusal(error, reading=True) or str(error.str())
