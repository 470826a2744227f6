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

from shared.dead_letter_replay import mark_of
from shared.dead_letters import DeadLetterRate, dead_letter, error_class, record_bytes
from shared.errors import DeadLetterFlood, Oversized
from shared.ports import Clock
from shared.records import Output, Record
from shared.stream.config import EngineConfig
from shared.stream.partition import Share
from shared.stream.prefetch import Ahead
from shared.stream.slice_bisection import RecordId, SliceSize
from shared.stream.state_store import POSITIONS_KEY, StoreFailed
from shared.stream.step import Reread, RereadingStep, Step, Through, Tick
from shared.stream.transaction import Aborted, Transactions, Unresolved

log = structlog.get_logger(__name__)

Probe = Callable[[str], None]
FEW_HEADERS = 8
"""With so few, a small record is not measured whole: should they be huge, the broker refuses it, to the same end."""


@dataclass(frozen=True, slots=True)
class Commit:
    """One committed transaction, for metrics. `dead`: the error class of each dead letter."""

    partitions: int
    records: int
    outputs: int
    states: int
    dead: tuple[str, ...]


class Slices:
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
        self._ahead = Ahead(step)
        self._transactions: Transactions
        self._clock = clock
        self._probe = probe
        self._rate = DeadLetterRate(config.dead_letter_limit)
        self._given_up: dict[RecordId, tuple[Exception, bool]] = {}
        self._dead: list[str] = []
        self._outputs = 0
        self._asked: list[str] = []

    def use(self, transactions: Transactions) -> None:
        """The producer to write with from now on."""
        self._transactions = transactions

    def run(
        self, shares: list[Share], group: Any, meanwhile: Callable[[], None] = lambda: None
    ) -> Commit | None:
        """Returns what was committed, None if there was nothing to commit. `meanwhile` is called while the broker
        commits; it may add to the partitions' buffers.

        Raises `Aborted` (the next slice tries again), `Unresolved` (after a new start), `DeadLetterFlood`, `Fatal`.
        """
        mark = self._rate.mark()
        try:
            return self._run(shares, group, meanwhile)
        except (Aborted, Unresolved) as failure:
            self._rate.back_to(mark)
            self._failed(shares, failure)
            raise
        except StoreFailed:
            self._rate.back_to(mark)
            raise

    def _run(self, shares: list[Share], group: Any, meanwhile: Callable[[], None]) -> Commit | None:
        self._dead, self._outputs = [], 0
        self._search(shares)
        self._probe("before_transaction")
        with closing(self._ahead.each(shares)) as coming:
            busy = [share for share in coming if self._step_through(share)]
        for share in busy:
            self._log_changes(share)
        if busy:
            sent = partial(self._probe, "after_produce")
            self._transactions.commit(_positions(busy), group, meanwhile=meanwhile, sent=sent)
            self._probe("after_commit")
        return self._committed(shares, busy)

    def _step_through(self, share: Share) -> bool:
        """Steps over the records of one partition and sends what follows. Whether there is anything to commit."""
        step, overlay, allowed = self._step, share.partition.overlay, self._config.outputs
        small = self._config.max_record_bytes // 2
        sending: list[Output] = []
        records = [*share.records, *share.reread] if share.reread else share.records
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
        self._rate.processed(len(records))
        for through in share.through:
            sending += self._through(share, through)
        if share.tick is not None:
            sending += self._tick(share)
        self._outputs += len(sending)
        self._transactions.produce(sending)
        asked = share.after.rereads != share.partition.positions.rereads
        return bool(records or sending or overlay.writes or share.through or asked)

    def _tick(self, share: Share) -> list[Output]:
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
            if partition.failed_ticks >= self._config.failed_ticks:
                raise self._flood(
                    f"{partition.failed_ticks} ticks in a row raised in partition {partition.number}, last: {error!r}"
                ) from error
            return []
        partition.failed_ticks = 0
        return outputs

    def _through(self, share: Share, through: Through) -> list[Output]:
        """As for a tick; where it raises it is fed again, until that was too often."""
        partition, config = share.partition, self._config
        position = share.after.rereads.pop(through.topic)
        now, again_s = time.monotonic(), config.tick_interval
        try:
            outputs = self._moment(share, through)
        except (MemoryError, StoreFailed):
            raise
        except Exception as error:
            share.after.rereads[through.topic] = position
            failed = partition.fed_through(through, now, again_s, raised=True)
            log.exception("the end of a reread raised", application=config.application, topic=through.topic)
            if failed >= config.failed_ticks:
                raise self._flood(
                    f"the end of the reread of {through.topic} raised {failed} times in partition {partition.number}, "
                    f"last: {error!r}"
                ) from error
            return []
        partition.fed_through(through, now, again_s, raised=False)
        return outputs

    def _moment(self, share: Share, moment: Tick | Through) -> list[Output]:
        """What follows from something that is no record. Raises what the step does, with nothing of it left."""
        overlay = share.partition.overlay
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

    def _granted(self, share: Share, outputs: Iterable[Output | Reread]) -> list[Output]:
        """The outputs to produce; what was asked to be reread among them begins with the next slice."""
        share.after.rereads |= dict.fromkeys(self._asked, 0)
        self._asked.clear()
        return [output for output in outputs if not isinstance(output, Reread)]

    def _check(self, output: Output | Reread, share: Share) -> None:
        if output.topic not in self._config.outputs:
            raise ValueError(f"The step may not write the topic {output.topic!r}.")
        if isinstance(output, Reread):
            if output.topic in share.after.rereads or output.topic in self._asked:
                raise ValueError(f"A reread of {output.topic} is under way already.")
            self._asked.append(output.topic)
            return
        size = record_bytes(output.key, output.value, output.headers)
        if size > self._config.max_record_bytes:
            raise Oversized(
                f"An output to {output.topic} has {size} bytes; at most {self._config.max_record_bytes}."
            )

    def _die(self, share: Share, record: Record, error: Exception, at: int) -> Output:
        kind = error_class(error)
        # A replayed record was given once more by a person, a bounded number at a time: it says nothing of the stream.
        if mark_of(record.headers) is None and self._rate.died(at):
            raise self._flood(f"last: {kind}: {error}") from error
        share.dead += 1
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
        return dead_letter(config.dead_letters, record, error, self._service, room)

    def _flood(self, last: str) -> DeadLetterFlood:
        limit = self._config.dead_letter_limit
        return DeadLetterFlood(
            f"{self._config.application} halted: more than {limit.share:.0%} of the last {limit.window} records (and "
            f"more than {limit.more_than}) could not be processed; {last}. Nothing of this slice was written. Mend the "
            "cause, or raise the limit, and start again: it goes on where it stood."
        )

    def _log_changes(self, share: Share) -> None:
        """The changelog records of one partition: what changed, and last the positions it belongs to."""
        topic, number = self._config.changelog, share.partition.number
        self._transactions.produce_states(topic, number, share.partition.overlay.writes)

        def delivered(offset: int) -> None:
            share.changelog_offset = offset

        self._transactions.produce_last(
            Output(topic, POSITIONS_KEY, share.after.encode(), (), number), delivered
        )

    def _committed(self, shares: list[Share], busy: list[Share]) -> Commit | None:
        for share in shares:
            if share not in busy:
                share.partition.nothing_to_commit(share)
        if not busy:
            return None
        now = self._clock.now_ms()
        states = sum(len(share.partition.overlay.writes) for share in busy)
        for share in busy:
            share.partition.committed(share, now)
        self._probe("after_store")
        self.size.committed()
        self._given_up.clear()
        records = sum(len(share.records) for share in busy)
        return Commit(len(busy), records, self._outputs, states, tuple(self._dead))

    def _search(self, shares: list[Share]) -> None:
        """After an abort ticks wait until the records went through, and are then tried one by one: no record is to be
        given up for what a tick has brought."""
        if not self.size.aborts and self.size.records == self._config.slice_records:
            return
        alone = not any(share.records or share.reread for share in shares)
        for share in shares:
            if share.tick is not None or share.through:
                if not alone:
                    share.postpone()
                alone = False

    def _failed(self, shares: list[Share], failure: Aborted | Unresolved) -> None:
        """Rewinds, and gives the first record up where it alone was tried often enough."""
        for share in shares:
            share.partition.aborted(share)
        first = next((record for share in shares for record in (*share.records[:1], *share.reread[:1])), None)
        moments = (share.partition.number for share in shares if share.tick is not None or share.through)
        at = (first.topic, first.partition, first.offset) if first else ("", next(moments, 0), 0)
        blames = isinstance(failure, Aborted) and failure.blames_records
        if self.size.aborted(at, blames_records=blames):
            oversized = isinstance(failure, Aborted) and failure.oversized
            error = Oversized(str(failure)) if oversized else failure
            # Where even its dead letter was refused, the record's bytes are left out; why it died is what it was.
            before = self._given_up.get(at)
            self._given_up[at] = (error, False) if before is None else (before[0], True)

    def _refuse_given_up(self, at: RecordId) -> None:
        found = self._given_up.get(at)
        if found is not None:
            raise found[0]


def _positions(shares: list[Share]) -> list[TopicPartition]:
    return [
        TopicPartition(topic, share.partition.number, offset)
        for share in shares
        for topic, offset in share.after.offsets.items()
    ]
