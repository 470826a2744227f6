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
from shared.dead_letters import DeadLetterRate, error_class, make_dead_letter, record_size
from shared.errors import DeadLetterFlood, Oversized
from shared.ports import Clock
from shared.records import Output, Record
from shared.stream.config import EngineConfig
from shared.stream.partition import PartitionSlice
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


@dataclass(frozen=True, slots=True)
class CommitStats:
    """Counts of one committed transaction, for metrics."""

    partitions: int
    records: int
    outputs: int
    states: int
    dead_letters: tuple[str, ...]
    """Error class of each dead letter."""


@dataclass(slots=True)
class _Slice:
    """A slice on its way through the step into a transaction."""

    parts: list[PartitionSlice]
    saved_rate: tuple[int, tuple[int, ...]]
    """Counts of dead letters before the slice."""
    held_back: list[Output] | None = None
    """Outputs that wait until the transaction before is decided. None: outputs are sent at once."""
    changed: list[PartitionSlice] = field(default_factory=list)
    """Parts with something to commit."""
    dead_letters: list[str] = field(default_factory=list)
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
        self._rate = DeadLetterRate(config.dead_letter_limit)
        self._given_up: dict[RecordId, _GivenUp] = {}
        self._requested_rereads: list[str] = []
        self._prepared: _Slice | None = None

    def use_producer(self, producer: TransactionalProducer) -> None:
        """Write with this producer from now on. Must be called before the first `run`."""
        self._producer = producer
        self._prepared = None

    @property
    def can_prepare(self) -> bool:
        """Whether slices may overlap: not while the cause of an abort is being searched for."""
        return not self.size.aborts and self.size.records == self._config.slice_records and not self._given_up

    @property
    def prepared(self) -> list[PartitionSlice] | None:
        """The parts of the prepared slice, which must be run next; None if there is none."""
        return None if self._prepared is None else self._prepared.parts

    def prepare(self, parts: list[PartitionSlice]) -> None:
        """Pass a slice through the step while the one before it is being committed.

        If that fails, the slice is rolled back. It then runs again on its own, where the failure is handled.
        """
        if not parts:  # records wait in the buffers, but cannot be merged yet
            return
        ahead = _Slice(parts, self._rate.save(), held_back=[])
        try:
            self._process_parts(ahead)
        except Exception:  # noqa: BLE001 - it is raised again when the slice runs
            self._roll_back_slice(ahead)
        else:
            self._prepared = ahead

    def discard_prepared(self) -> None:
        """Roll back the prepared slice, if there is one."""
        if self._prepared is not None:
            self._roll_back_slice(self._prepared)
            self._prepared = None

    def run(
        self, parts: list[PartitionSlice], group: Any, meanwhile: Callable[[], None] = lambda: None
    ) -> CommitStats | None:
        """Run one slice, and return what was committed, or None if there was nothing to commit.

        `meanwhile` is called while the broker commits; it may add records to the partitions' buffers, and `prepare` the
        next slice. `parts` must be those of the prepared slice if there is one.

        Raises `TransactionAborted` (run the next slice, which begins with the same records), `ClientsUnusable` and
        `StoreFailed` (start again with new clients and stores), `DeadLetterFlood`, `Fatal`.
        """
        current, self._prepared = self._prepared or _Slice(parts, self._rate.save()), None
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
            self._rate.roll_back(current.saved_rate)
            raise

    def _run(self, current: _Slice, group: Any, meanwhile: Callable[[], None]) -> CommitStats | None:
        self._probe("before_transaction")
        if current.held_back is None:
            self._isolate_notifications(current.parts)
            self._process_parts(current)
        else:
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
        sending: list[Output] = []
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
                sending.append(self._to_dead_letter(part, record, error, index, current))
            else:
                sending += self._begin_rereads(part, outputs) if self._requested_rereads else outputs  # type: ignore[arg-type]
        self._rate.add_processed(len(records))
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
        """Pass the tick to the step. A tick has no bytes to keep, so a failure is logged; several in a row halt."""
        partition = part.partition
        assert part.tick is not None
        try:
            outputs = self._notify(part, part.tick)
        except (MemoryError, StoreFailed):
            raise
        except Exception as error:
            partition.failed_ticks += 1
            log.exception("a tick raised", application=self._config.application, partition=partition.number)
            if partition.failed_ticks >= self._config.max_failed_ticks:
                raise self._halted(
                    f"{partition.failed_ticks} ticks in a row raised in partition {partition.number}; "
                    f"last: {error!r}"
                ) from error
            return []
        partition.failed_ticks = 0
        return outputs

    def _complete_reread(self, part: PartitionSlice, completion: RereadComplete) -> list[Output]:
        """Pass a reread's completion to the step. If it raises, pass it again later; several failures halt."""
        partition, config = part.partition, self._config
        position = part.new_positions.rereads.pop(completion.topic)
        now, retry_s = self._clock.monotonic(), config.tick_interval
        try:
            outputs = self._notify(part, completion)
        except (MemoryError, StoreFailed):
            raise
        except Exception as error:
            part.new_positions.rereads[completion.topic] = position
            failures = partition.record_completion(completion, now, retry_s, raised=True)
            log.exception(
                "a reread completion raised", application=config.application, topic=completion.topic
            )
            if failures >= config.max_failed_ticks:
                raise self._halted(
                    f"the completed reread of {completion.topic} raised {failures} times in a row in partition "
                    f"{partition.number}; last: {error!r}"
                ) from error
            return []
        partition.record_completion(completion, now, retry_s, raised=False)
        return outputs

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

    def _to_dead_letter(
        self, part: PartitionSlice, record: Record, error: Exception, index: int, current: _Slice
    ) -> Output:
        kind = error_class(error)
        # An operator replayed this record, one of a bounded number, so it does not count as a failure of the stream.
        if parse_replay_mark(record.headers) is None and self._rate.add_dead_letter(index):
            limit = self._config.dead_letter_limit
            raise self._halted(
                f"more than {limit.max_share:.0%} of the last {limit.window} records (and more than "
                f"{limit.max_count}) could not be processed; last: {kind}: {error}"
            ) from error
        part.dead_letters += 1
        current.dead_letters.append(kind)
        log.warning(
            "dead letter",
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            error_class=kind,
            error=str(error)[:500],
        )
        config = self._config
        given_up = self._given_up.get((record.topic, record.partition, record.offset))
        max_bytes = 0 if given_up and given_up.omit_value else config.max_record_bytes
        return make_dead_letter(config.dead_letters, record, error, self._service, max_bytes)

    def _halted(self, cause: str) -> DeadLetterFlood:
        return DeadLetterFlood(
            f"{self._config.application} halted: {cause}. This slice was not written. Fix the cause or raise the "
            "limit, and restart: the engine continues at the same records."
        )

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
        return CommitStats(len(changed), records, current.outputs, states, tuple(current.dead_letters))

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
        self._rate.roll_back(current.saved_rate)
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
            error = Oversized(str(failure)) if oversized else failure
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
