"""Runs a slice: through the step, into one transaction, and after the commit into the stores."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast

import structlog
from confluent_kafka import TopicPartition

from shared.dead_letter_replay import parse_replay_mark
from shared.dead_letters import DeadLetterRate, error_class, is_unexpected, make_dead_letter, record_size
from shared.errors import Oversized, RefusedByBroker, Rejected
from shared.ports import Clock
from shared.records import Output, Record
from shared.stream.config import EngineConfig
from shared.stream.partition import Halt, PartitionSlice
from shared.stream.prefetch import Prefetcher
from shared.stream.slice_bisection import RecordId, SliceSize
from shared.stream.state_store import POSITIONS_KEY, StoreFailed
from shared.stream.step import RereadComplete, RereadingStep, RereadRequest, Step, Tick
from shared.stream.transaction import ClientsUnusable, TransactionAborted, TransactionalProducer

log = structlog.get_logger(__name__)

Probe = Callable[[str], None]
"""Test hook, called with the name of each phase; see `Engine`."""
FEW_HEADERS = 8
"""A small record with at most this many headers is not measured exactly. If they are huge, the broker refuses it."""
MAX_NOTIFICATION_RETRY_S = 60.0
"""Longest time until a notification on which the step raised is passed again."""
LOG_INTERVAL_S = 1.0
"""Shortest time between two log lines about dead letters."""


@dataclass(frozen=True, slots=True)
class CommitStats:
    """Counts of one committed transaction, for metrics."""

    partitions: int
    records: int
    outputs: int
    states: int
    dead_letters: tuple[str, ...]
    """Error class of each dead letter."""
    newest_dead_letter: str = ""
    """Position and error of the last of them."""


@dataclass(slots=True)
class _Slice:
    """A slice on its way through the step into a transaction."""

    parts: list[PartitionSlice]
    saved_errors: list[tuple[DeadLetterRate, tuple[int, dict[bytes | int, int]]]]
    """Counts of unexpected errors before the slice, by partition."""
    held_back: list[Output] | None = None
    """Outputs that wait until the transaction before is decided. None: outputs are sent at once."""
    changed: list[PartitionSlice] = field(default_factory=list)
    """Parts with something to commit."""
    dead_letters: list[str] = field(default_factory=list)
    newest_dead_letter: str = ""
    outputs: int = 0


class _GivenUp(NamedTuple):
    """Why a record was given up."""

    error: Exception
    omit_value: bool
    """Whether the broker refused the dead letter too, so that it must omit the record's value."""


class SliceRunner:
    """Runs slices, and decides after an abort how the same records are tried again. Not thread-safe.

    While the broker commits a slice, `prepare` passes the next one through the step. Its outputs are held back until
    the commit is decided; if it fails, both slices are rolled back.

    After `run` returns, the slice is both in the log and in the stores. After `TransactionAborted` it is in neither,
    and its records are back in their buffers. After any other error the partitions must be restored again.
    """

    def __init__(self, config: EngineConfig, step: Step | RereadingStep, clock: Clock, probe: Probe) -> None:
        self.size = SliceSize(config.slice_records)
        self._config = config
        self._service = config.service or config.application
        # Safe for a plain `Step`: it requests no reread, so it never gets a `RereadComplete`.
        self._step = cast(RereadingStep, step)
        self._prefetcher = Prefetcher(step)
        self._producer: TransactionalProducer
        self._clock = clock
        self._probe = probe
        self._given_up: dict[RecordId, _GivenUp] = {}
        self._next_log, self._unlogged = 0.0, 0
        self._requested_rereads: list[str] = []
        self._prepared: _Slice | None = None
        self._halting = False
        """Whether a partition halts with the slice that is being committed."""

    def use_producer(self, producer: TransactionalProducer) -> None:
        """Write with this producer from now on. Must be called before the first `run`."""
        self._producer = producer
        self._prepared = None

    @property
    def can_prepare(self) -> bool:
        """Whether slices may overlap: not while the cause of an abort is being searched for, or a partition halts."""
        return (
            not self._halting
            and not self.size.aborts
            and self.size.records == self._config.slice_records
            and not self._given_up
        )

    @property
    def prepared(self) -> list[PartitionSlice] | None:
        """The parts of the prepared slice, which must be run next; None if there is none."""
        return None if self._prepared is None else self._prepared.parts

    def prepare(self, parts: list[PartitionSlice]) -> None:
        """Pass a slice through the step while the one before it is being committed.

        If that fails, or a partition must halt, the slice is rolled back. It then runs again on its own, where this is
        handled.
        """
        if not parts:  # records wait in the buffers, but cannot be merged yet
            return
        ahead = self._new_slice(parts)
        ahead.held_back = []
        try:
            self._process_parts(ahead)
        except Exception:  # noqa: BLE001 - it is raised again when the slice runs
            self._roll_back_slice(ahead)
            return
        if any(part.halt is not None for part in parts):
            self._roll_back_slice(ahead)
        else:
            self._prepared = ahead

    def discard_prepared(self) -> None:
        """Roll back the prepared slice, if there is one."""
        if self._prepared is not None:
            self._roll_back_slice(self._prepared)
            self._prepared = None

    def give_up(self, record: RecordId, error: Rejected) -> None:
        """Make a record a dead letter with this error when its slice is run, without passing it through the step."""
        self._given_up.setdefault(record, _GivenUp(error, False))

    def run(
        self, parts: list[PartitionSlice], group: Any, meanwhile: Callable[[], None] = lambda: None
    ) -> CommitStats | None:
        """Run one slice, and return what was committed, or None if there was nothing to commit.

        `meanwhile` is called while the broker commits; it may add records to the partitions' buffers, and `prepare` the
        next slice. `parts` must be those of the prepared slice if there is one.

        Raises `TransactionAborted` (run the next slice, which begins with the same records), `ClientsUnusable` and
        `StoreFailed` (start again with new clients and stores), `Fatal`. A part whose errors exceed the limit ends
        before the record that exceeded it, and has `halt` set.
        """
        current, self._prepared = self._prepared or self._new_slice(parts), None
        if current.parts is not parts:
            raise ValueError("another slice is prepared and must be run first")
        try:
            return self._run(current, group, meanwhile)
        except (TransactionAborted, ClientsUnusable) as failure:
            self.discard_prepared()
            self._roll_back_slice(current)
            self._note_failure(parts, failure)
            raise
        except StoreFailed:
            self.discard_prepared()
            raise

    def _new_slice(self, parts: list[PartitionSlice]) -> _Slice:
        return _Slice(parts, [(part.partition.errors, part.partition.errors.save()) for part in parts])

    def _run(self, current: _Slice, group: Any, meanwhile: Callable[[], None]) -> CommitStats | None:
        self._probe("before_transaction")
        if current.held_back is None:
            self._isolate_notifications(current.parts)
            self._process_parts(current)
            self._halting = any(part.halt is not None for part in current.parts)
        else:
            self._halting = False
            self._producer.produce(current.held_back)
        for part in current.changed:
            self._produce_changelog(part)
        if current.changed:
            for part in current.parts:
                part.partition.begin_commit(part)
            self._producer.commit(
                _consumed_positions(current.changed),
                group,
                meanwhile=meanwhile,
                before_commit=partial(self._probe, "after_produce"),
            )
            self._probe("after_commit")
        return self._after_commit(current)

    def _process_parts(self, current: _Slice) -> None:
        with closing(self._prefetcher.prefetch(current.parts)) as prefetched:
            current.changed = [part for part in prefetched if self._process(part, current)]

    def _process(self, part: PartitionSlice, current: _Slice) -> bool:
        """Step over one partition's records and send the outputs. Returns whether there is anything to commit."""
        step, state, allowed = self._step, part.write_buffer, self._config.outputs
        small = self._config.max_record_bytes // 2
        sending: list[Output] = list(part.outputs)
        records = [*part.records, *part.reread_records] if part.reread_records else part.records
        for index, record in enumerate(records):
            state.savepoint()
            try:
                if self._given_up:
                    self._raise_if_given_up((record.topic, record.partition, record.offset))
                outputs = [*step(state, record)]
                for output in outputs:
                    # Inlined fast path of `_check`: most outputs are small and have few headers.
                    if (
                        output.__class__ is not Output
                        or len(output.headers) > FEW_HEADERS
                        or output.topic not in allowed
                        or len(output.value or b"") + len(output.key or b"") > small
                    ):
                        self._check(output, part)
            except (MemoryError, StoreFailed):
                raise
            except Exception as error:  # noqa: BLE001 - any exception of the step makes the record a dead letter
                state.undo()
                self._requested_rereads.clear()
                part.halt = self._must_halt(part, record, error, index)
                if part.halt is not None:
                    part.partition.shorten(part, index)
                    records = records[:index]
                    break
                sending.append(self._to_dead_letter(part, record, error, current))
            else:
                sending += self._begin_rereads(part, outputs) if self._requested_rereads else outputs  # type: ignore[arg-type]
        part.partition.errors.add_processed(len(records))
        for completion in part.completed_rereads:
            sending += self._complete_reread(part, completion)
        if part.tick is not None:
            sending += self._tick(part)
        current.outputs += len(sending)
        if current.held_back is None:
            self._producer.produce(sending)
        else:
            current.held_back += sending
        rereads_changed = part.new_positions.rereads != part.partition.positions.rereads
        return bool(
            records
            or sending
            or state.writes
            or part.completed_rereads
            or rereads_changed
            or part.measures_clock
        )

    def _tick(self, part: PartitionSlice) -> list[Output]:
        """Pass the tick to the step. If it raises, the partition goes on with records, and ticks again later."""
        partition = part.partition
        assert part.tick is not None
        try:
            outputs = self._notify(part, part.tick)
        except (MemoryError, StoreFailed):
            raise
        except Exception as error:  # noqa: BLE001 - the partition goes on without the tick
            partition.failed_ticks += 1
            partition.next_tick = self._clock.monotonic() + self._retry_delay(partition.failed_ticks)
            self._note_failed_notification(part, "tick", partition.failed_ticks, error)
            return []
        if partition.failed_ticks:
            partition.failed_ticks, partition.problem = 0, None
        return outputs

    def _complete_reread(self, part: PartitionSlice, completion: RereadComplete) -> list[Output]:
        """Pass a reread's completion to the step. If it raises, pass it again later."""
        partition = part.partition
        position = part.new_positions.rereads.pop(completion.topic)
        now = self._clock.monotonic()
        try:
            outputs = self._notify(part, completion)
        except (MemoryError, StoreFailed):
            raise
        except Exception as error:  # noqa: BLE001 - the partition goes on
            part.new_positions.rereads[completion.topic] = position
            failures = partition.reread_cursors[completion.topic].failed_completions + 1
            partition.record_completion(completion, now, self._retry_delay(failures), raised=True)
            self._note_failed_notification(part, f"reread of {completion.topic}", failures, error)
            return []
        if partition.reread_cursors[completion.topic].failed_completions:
            partition.problem = None
        partition.record_completion(completion, now, 0.0, raised=False)
        return outputs

    def _retry_delay(self, failures: int) -> float:
        return float(min(MAX_NOTIFICATION_RETRY_S, self._config.tick_interval * 2 ** min(failures, 16)))

    def _note_failed_notification(
        self, part: PartitionSlice, what: str, failures: int, error: Exception
    ) -> None:
        part.partition.problem = (
            f"{what} raised {failures} times in a row, tried again after up to {MAX_NOTIFICATION_RETRY_S:.0f} s; "
            f"records are processed. Last: {error!r}"
        )
        log.error(
            "a notification raised",
            application=self._config.application,
            partition=part.partition.number,
            notification=what,
            failures=failures,
            error=repr(error),
            exc_info=error if failures == 1 else None,
        )

    def _notify(self, part: PartitionSlice, notification: Tick | RereadComplete) -> list[Output]:
        """Pass a notification to the step and return its outputs. If the step raises, its writes are undone."""
        state = part.write_buffer
        state.savepoint()
        try:
            self._raise_if_given_up(("", part.partition.number, 0))
            outputs = [*self._step(state, notification)]
            for output in outputs:
                self._check(output, part)
            return self._begin_rereads(part, outputs)
        except Exception:
            state.undo()
            raise
        finally:
            self._requested_rereads.clear()

    def _begin_rereads(self, part: PartitionSlice, outputs: Iterable[Output | RereadRequest]) -> list[Output]:
        """Schedule the requested rereads for the next slice, and return the outputs without the requests."""
        part.new_positions.rereads |= dict.fromkeys(self._requested_rereads, 0)
        self._requested_rereads.clear()
        return [output for output in outputs if not isinstance(output, RereadRequest)]

    def _check(self, output: Output | RereadRequest, part: PartitionSlice) -> None:
        if output.topic not in self._config.outputs:
            raise ValueError(f"the step may not write the topic {output.topic!r}")
        if isinstance(output, RereadRequest):
            if output.topic in part.new_positions.rereads or output.topic in self._requested_rereads:
                raise ValueError(f"a reread of {output.topic} is already in progress")
            self._requested_rereads.append(output.topic)
            return
        size = record_size(output.key, output.value, output.headers)
        if size > self._config.max_record_bytes:
            raise Oversized(
                f"an output to {output.topic} has {size} bytes; the limit is {self._config.max_record_bytes}"
            )

    def _must_halt(self, part: PartitionSlice, record: Record, error: Exception, index: int) -> Halt | None:
        """Return why the partition must stop before this record, or None if it becomes a dead letter."""
        # An operator replayed this record, one of a bounded number, so it does not count as a failure of the stream.
        if not is_unexpected(error) or parse_replay_mark(record.headers) is not None:
            return None
        if not part.partition.errors.add_failure(index, record.key):
            return None
        return Halt(
            f"halted at {record.topic} offset {record.offset}: too many records raised unexpected errors "
            f"({self._config.dead_letter_limit}); this one: {error_class(error)}: {str(error)[:300]}. Nothing from "
            "this record on was processed or lost. Fix the cause and restart, raise the limit, or skip the record: see "
            "'A partition is halted' in docs/operations.md",
            (record.topic, record.offset),
        )

    def _to_dead_letter(
        self, part: PartitionSlice, record: Record, error: Exception, current: _Slice
    ) -> Output:
        kind = error_class(error)
        part.dead_letters += 1
        current.dead_letters.append(kind)
        current.newest_dead_letter = (
            f"{record.topic} {record.partition}-{record.offset}: {kind}: {str(error)[:200]}"
        )
        self._log_dead_letter(kind, current.newest_dead_letter, unexpected=is_unexpected(error))
        config = self._config
        given_up = self._given_up.get((record.topic, record.partition, record.offset))
        max_bytes = 0 if given_up and given_up.omit_value else config.max_record_bytes
        return make_dead_letter(config.dead_letters, record, error, self._service, max_bytes)

    def _log_dead_letter(self, kind: str, record: str, *, unexpected: bool) -> None:
        """Log the newest dead letter, at most one a second: producers can cause any number of them."""
        now = self._clock.monotonic()
        if now < self._next_log:
            self._unlogged += 1
            return
        log.warning(
            "dead letter",
            error_class=kind,
            unexpected=unexpected,
            record=record,
            others_not_logged=self._unlogged,
        )
        self._next_log, self._unlogged = now + LOG_INTERVAL_S, 0

    def _produce_changelog(self, part: PartitionSlice) -> None:
        """Send the changelog records of one partition: the changed state, and last the positions."""
        topic, number = self._config.changelog, part.partition.number
        self._producer.produce_changelog(topic, number, part.write_buffer.writes)

        sent = self._clock.monotonic()

        def note_offset(offset: int, append_ms: int | None) -> None:
            part.changelog_offset = offset
            part.changelog_times = append_ms, sent, self._clock.monotonic()

        self._producer.produce_tracked(
            Output(topic, POSITIONS_KEY, part.new_positions.encode(), (), number), note_offset
        )

    def _after_commit(self, current: _Slice) -> CommitStats | None:
        changed = current.changed
        for part in current.parts:
            if part not in changed:
                part.partition.skip_commit(part)
        if not changed:
            return None
        now = self._clock.now_ms()
        states = sum(len(part.write_buffer.writes) for part in changed)
        for part in changed:
            part.partition.apply_commit(part, now)
        self._probe("after_store")
        self.size.committed()
        self._given_up.clear()
        records = sum(len(part.records) for part in changed)
        return CommitStats(
            len(changed),
            records,
            current.outputs,
            states,
            tuple(current.dead_letters),
            current.newest_dead_letter,
        )

    def _isolate_notifications(self, parts: list[PartitionSlice]) -> None:
        """After an abort, postpone notifications until the records are committed, and then try them one at a time.

        Otherwise a record could be given up for the outputs of a tick.
        """
        if not self.size.aborts and self.size.records == self._config.slice_records:
            return
        postpone = any(part.records or part.reread_records for part in parts)
        for part in parts:
            if part.tick is not None or part.completed_rereads:
                if postpone:
                    part.postpone_notifications()
                postpone = True

    def _roll_back_slice(self, current: _Slice) -> None:
        """Return the records of a slice to their buffers."""
        for errors, counts in current.saved_errors:
            errors.roll_back(counts)
        for part in current.parts:
            part.partition.roll_back(part)

    def _note_failure(
        self, parts: list[PartitionSlice], failure: TransactionAborted | ClientsUnusable
    ) -> None:
        """Give the first record of a slice up if it failed often enough on its own."""
        first = next(
            (record for part in parts for record in (*part.records[:1], *part.reread_records[:1])), None
        )
        notified = (
            part.partition.number for part in parts if part.tick is not None or part.completed_rereads
        )
        at = (first.topic, first.partition, first.offset) if first else ("", next(notified, 0), 0)
        caused_by_record = isinstance(failure, TransactionAborted) and failure.caused_by_record
        if self.size.aborted(at, caused_by_record=caused_by_record):
            oversized = isinstance(failure, TransactionAborted) and failure.oversized
            error = Oversized(str(failure)) if oversized else RefusedByBroker(str(failure))
            # If the broker refused its dead letter too, keep the original error and leave out the record's bytes.
            before = self._given_up.get(at)
            self._given_up[at] = _GivenUp(error, False) if before is None else _GivenUp(before.error, True)

    def _raise_if_given_up(self, at: RecordId) -> None:
        given_up = self._given_up.get(at)
        if given_up is not None:
            raise given_up.error


def _consumed_positions(parts: list[PartitionSlice]) -> list[TopicPartition]:
    return [
        TopicPartition(topic, part.partition.number, offset)
        for part in parts
        for topic, offset in part.new_positions.offsets.items()
    ]
