"""One slice: through the step, into one transaction, and after the commit into the stores."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

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
FEW_HEADERS = 8
"""With so few, a small record is not measured whole: should they be huge, the broker refuses it, to the same end."""


@dataclass(frozen=True, slots=True)
class CommitStats:
    """One committed transaction, for metrics. `dead`: the error class of each dead letter."""

    partitions: int
    records: int
    outputs: int
    states: int
    dead: tuple[str, ...]


class SliceRunner:
    """Runs slices, and decides after an abort how the same records are tried again.

    After `run` returns True, log and stores have the slice; after False, neither has anything of it, and the
    records wait in their buffers again.
    """

    def __init__(self, config: EngineConfig, step: Step | RereadingStep, clock: Clock, probe: Probe) -> None:
        self.size = SliceSize(config.slice_records)
        self._config = config
        self._service = config.service or config.application
        # A step that never asks for a reread is never told that one is through.
        self._step = cast(RereadingStep, step)
        self._prefetcher = Prefetcher(step)
        self._producer: TransactionalProducer
        self._clock = clock
        self._probe = probe
        self._rate = DeadLetterRate(config.dead_letter_limit)
        self._given_up: dict[RecordId, tuple[Exception, bool]] = {}
        self._dead: list[str] = []
        self._outputs = 0
        self._asked: list[str] = []

    def use_producer(self, transactions: TransactionalProducer) -> None:
        """The producer to write with from now on."""
        self._producer = transactions

    def run(
        self, shares: list[PartitionSlice], group: Any, meanwhile: Callable[[], None] = lambda: None
    ) -> CommitStats | None:
        """Returns what was committed, None if there was nothing to commit. `meanwhile` is called while the broker
        commits; it may add to the partitions' buffers.

        Raises `Aborted` (the next slice tries again), `Unresolved` (after a new start), `DeadLetterFlood`, `Fatal`.
        """
        mark = self._rate.save()
        try:
            return self._run(shares, group, meanwhile)
        except (TransactionAborted, ClientsUnusable) as failure:
            self._rate.roll_back(mark)
            self._failed(shares, failure)
            raise
        except StoreFailed:
            self._rate.roll_back(mark)
            raise

    def _run(self, shares: list[PartitionSlice], group: Any, meanwhile: Callable[[], None]) -> CommitStats | None:
        self._dead, self._outputs = [], 0
        self._search(shares)
        self._probe("before_transaction")
        with closing(self._prefetcher.prefetch(shares)) as coming:
            busy = [share for share in coming if self._step_through(share)]
        for share in busy:
            self._log_changes(share)
        if busy:
            sent = partial(self._probe, "after_produce")
            self._producer.commit(_consumed_positions(busy), group, meanwhile=meanwhile, sent=sent)
            self._probe("after_commit")
        return self._committed(shares, busy)

    def _step_through(self, share: PartitionSlice) -> bool:
        """Steps over the records of one partition and sends what follows. Whether there is anything to commit."""
        step, overlay, allowed = self._step, share.partition.write_buffer, self._config.outputs
        small = self._config.max_record_bytes // 2
        sending: list[Output] = []
        records = [*share.records, *share.reread_records] if share.reread_records else share.records
        for at, record in enumerate(records):
            overlay.savepoint()
            try:
                if self._given_up:
                    self._refuse_given_up((record.topic, record.partition, record.offset))
                outputs = [*step(overlay, record)]
                for output in outputs:
                    # Most are small outputs with few headers: for them, `_check` written out.
                    if (
                        output.__class__ is not Output
                        or len(output.headers) > FEW_HEADERS
                        or output.topic not in allowed
                        or len(output.value or b"") + len(output.key or b"") > small
                    ):
                        self._check(output, share)
            except (MemoryError, StoreFailed):
                raise
            except Exception as error:  # noqa: BLE001 - whatever a step raises is the record's end, not ours
                overlay.undo()
                self._asked.clear()
                sending.append(self._die(share, record, error, at))
            else:
                sending += self._granted(share, outputs) if self._asked else outputs  # type: ignore[arg-type]
        self._rate.add_processed(len(records))
        for through in share.completed_rereads:
            sending += self._through(share, through)
        if share.tick is not None:
            sending += self._tick(share)
        self._outputs += len(sending)
        self._producer.produce(sending)
        asked = share.new_positions.rereads != share.partition.positions.rereads
        return bool(records or sending or overlay.writes or share.completed_rereads or asked)

    def _tick(self, share: PartitionSlice) -> list[Output]:
        """As for a record; but a tick has no bytes to keep, so where it raises that is logged, and not for ever."""
        partition = share.partition
        assert share.tick is not None
        try:
            outputs = self._moment(share, share.tick)
        except (MemoryError, StoreFailed):
            raise
        except Exception as error:
            partition.failed_ticks += 1
            log.exception("a tick raised", application=self._config.application, partition=partition.number)
            if partition.failed_ticks >= self._config.max_failed_ticks:
                raise self._flood(
                    f"{partition.failed_ticks} ticks in a row raised in partition {partition.number}, last: {error!r}"
                ) from error
            return []
        partition.failed_ticks = 0
        return outputs

    def _through(self, share: PartitionSlice, through: RereadComplete) -> list[Output]:
        """As for a tick; where it raises it is fed again, until that was too often."""
        partition, config = share.partition, self._config
        position = share.new_positions.rereads.pop(through.topic)
        now, again_s = time.monotonic(), config.tick_interval
        try:
            outputs = self._moment(share, through)
        except (MemoryError, StoreFailed):
            raise
        except Exception as error:
            share.new_positions.rereads[through.topic] = position
            failed = partition.record_completion(through, now, again_s, raised=True)
            log.exception("the end of a reread raised", application=config.application, topic=through.topic)
            if failed >= config.max_failed_ticks:
                raise self._flood(
                    f"the end of the reread of {through.topic} raised {failed} times in partition {partition.number}, "
                    f"last: {error!r}"
                ) from error
            return []
        partition.record_completion(through, now, again_s, raised=False)
        return outputs

    def _moment(self, share: PartitionSlice, moment: Tick | RereadComplete) -> list[Output]:
        """What follows from something that is no record. Raises what the step does, with nothing of it left."""
        overlay = share.partition.write_buffer
        overlay.savepoint()
        try:
            self._refuse_given_up(("", share.partition.number, 0))
            outputs = [*self._step(overlay, moment)]
            for output in outputs:
                self._check(output, share)
            return self._granted(share, outputs)
        except Exception:
            overlay.undo()
            raise
        finally:
            self._asked.clear()

    def _granted(self, share: PartitionSlice, outputs: Iterable[Output | RereadRequest]) -> list[Output]:
        """The outputs to produce; what was asked to be reread among them begins with the next slice."""
        share.new_positions.rereads |= dict.fromkeys(self._asked, 0)
        self._asked.clear()
        return [output for output in outputs if not isinstance(output, RereadRequest)]

    def _check(self, output: Output | RereadRequest, share: PartitionSlice) -> None:
        if output.topic not in self._config.outputs:
            raise ValueError(f"The step may not write the topic {output.topic!r}.")
        if isinstance(output, RereadRequest):
            if output.topic in share.new_positions.rereads or output.topic in self._asked:
                raise ValueError(f"A reread of {output.topic} is under way already.")
            self._asked.append(output.topic)
            return
        size = record_size(output.key, output.value, output.headers)
        if size > self._config.max_record_bytes:
            raise Oversized(
                f"An output to {output.topic} has {size} bytes; at most {self._config.max_record_bytes}."
            )

    def _die(self, share: PartitionSlice, record: Record, error: Exception, at: int) -> Output:
        kind = error_class(error)
        # A replayed record was given once more by a person, a bounded number at a time: it says nothing of the stream.
        if parse_replay_mark(record.headers) is None and self._rate.add_dead_letter(at):
            raise self._flood(f"last: {kind}: {error}") from error
        share.dead_letters += 1
        self._dead.append(kind)
        log.warning(
            "dead letter",
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            error_class=kind,
            error=str(error)[:500],
        )
        config = self._config
        found = self._given_up.get((record.topic, record.partition, record.offset))
        room = 0 if found and found[1] else config.max_record_bytes
        return make_dead_letter(config.dead_letters, record, error, self._service, room)

    def _flood(self, last: str) -> DeadLetterFlood:
        limit = self._config.dead_letter_limit
        return DeadLetterFlood(
            f"{self._config.application} halted: more than {limit.max_share:.0%} of the last {limit.window} records (and "
            f"more than {limit.max_count}) could not be processed; {last}. Nothing of this slice was written. Mend the "
            "cause, or raise the limit, and start again: it goes on where it stood."
        )

    def _log_changes(self, share: PartitionSlice) -> None:
        """The changelog records of one partition: what changed, and last the positions it belongs to."""
        topic, number = self._config.changelog, share.partition.number
        self._producer.produce_changelog(topic, number, share.partition.write_buffer.writes)

        def delivered(offset: int) -> None:
            share.changelog_offset = offset

        self._producer.produce_tracked(
            Output(topic, POSITIONS_KEY, share.new_positions.encode(), (), number), delivered
        )

    def _committed(self, shares: list[PartitionSlice], busy: list[PartitionSlice]) -> CommitStats | None:
        for share in shares:
            if share not in busy:
                share.partition.skip_commit(share)
        if not busy:
            return None
        now = self._clock.now_ms()
        states = sum(len(share.partition.write_buffer.writes) for share in busy)
        for share in busy:
            share.partition.apply_commit(share, now)
        self._probe("after_store")
        self.size.committed()
        self._given_up.clear()
        records = sum(len(share.records) for share in busy)
        return CommitStats(len(busy), records, self._outputs, states, tuple(self._dead))

    def _search(self, shares: list[PartitionSlice]) -> None:
        """After an abort ticks wait until the records went through, and are then tried one by one: no record is to be
        given up for what a tick has brought."""
        if not self.size.aborts and self.size.records == self._config.slice_records:
            return
        alone = not any(share.records or share.reread_records for share in shares)
        for share in shares:
            if share.tick is not None or share.completed_rereads:
                if not alone:
                    share.postpone_notifications()
                alone = False

    def _failed(self, shares: list[PartitionSlice], failure: TransactionAborted | ClientsUnusable) -> None:
        """Rewinds, and gives the first record up where it alone was tried often enough."""
        for share in shares:
            share.partition.roll_back(share)
        first = next((record for share in shares for record in (*share.records[:1], *share.reread_records[:1])), None)
        moments = (share.partition.number for share in shares if share.tick is not None or share.completed_rereads)
        at = (first.topic, first.partition, first.offset) if first else ("", next(moments, 0), 0)
        blames = isinstance(failure, TransactionAborted) and failure.caused_by_record
        if self.size.aborted(at, caused_by_record=blames):
            oversized = isinstance(failure, TransactionAborted) and failure.oversized
            error = Oversized(str(failure)) if oversized else failure
            # Where even its dead letter was refused, the record's bytes are left out; why it died is what it was.
            before = self._given_up.get(at)
            self._given_up[at] = (error, False) if before is None else (before[0], True)

    def _refuse_given_up(self, at: RecordId) -> None:
        found = self._given_up.get(at)
        if found is not None:
            raise found[0]


def _consumed_positions(shares: list[PartitionSlice]) -> list[TopicPartition]:
    return [
        TopicPartition(topic, share.partition.number, offset)
        for share in shares
        for topic, offset in share.new_positions.offsets.items()
    ]
