"""Carries out `skip` commands: an operator lets a halted partition continue without the record at which it stopped.

The engine writes the result together with the record's dead letter, in one transaction, so a command is carried out
once. Every process of a service follows the commands, and the one that owns the partition answers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import structlog

from shared.adapters.topic_follower import TopicFollower
from shared.cloudevents import cloudevent, traceparent_of
from shared.commands import COMMAND, SKIPPING_SERVICES, CommandResult, Skip
from shared.errors import Misconfigured, NotYet, Rejected
from shared.events import from_ms, parse_union
from shared.ports import Clock, LogReader
from shared.records import Output, Record
from shared.stream.engine import Engine, SkipRequest
from shared.telemetry import Readiness
from shared.topics import OPERATOR_COMMANDS, OPERATOR_RESULTS

CHECK: Final = "skip_commands"
TOPICS_READ: Final = (OPERATOR_COMMANDS.name, OPERATOR_RESULTS.name)
OFFER_INTERVAL_S: Final = 1.0
REFUSE_AFTER_S: Final = 5.0
"""A command is refused only this long after it was read. A former owner's result may still be on its way until then."""
MAX_AGE_MS: Final = 86_400_000
"""An older command is refused: its operator no longer expects it."""
STOP_S: Final = 5.0
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Pending:
    """A command without a result."""

    command: Skip
    record: Record
    read_at: float
    """When it was read, in monotonic seconds."""


class SkipCommands:
    """Follows the commands and results, and offers the pending commands to the engine until their results arrive.

    While the topics cannot be read, commands wait; the engine is not affected. `status` says so.
    """

    def __init__(
        self,
        engine: Engine,
        service: str,
        open_reader: Callable[[Sequence[str]], LogReader],
        clock: Clock,
    ) -> None:
        """Store the parts; `start` starts two threads.

        `open_reader` opens a reader of topics from their beginning.
        """
        self._engine = engine
        self._service = service
        self._open_reader = open_reader
        self._clock = clock
        self._readiness = Readiness(CHECK)
        self._follower = TopicFollower(CHECK, self._open, self.apply, self._readiness, lambda: None)
        self._lock = threading.Lock()
        self._pending: dict[str, _Pending] = {}
        self._finished: set[str] = set()
        self._stopping = threading.Event()
        self._offers = threading.Thread(target=self._run, name=CHECK, daemon=True)

    def start(self) -> None:
        """Start following."""
        self._follower.start()
        self._offers.start()

    def stop(self) -> None:
        """Stop, within a few seconds."""
        self._stopping.set()
        self._follower.stop()
        if self._offers.ident is not None:
            self._offers.join(STOP_S)

    def status(self) -> str:
        """Return "ok", or why commands wait."""
        return self._readiness.report()[1][CHECK]

    def apply(self, records: Sequence[Record]) -> None:
        """Note commands and results. Unreadable ones are ignored: their executors write the dead letters."""
        with self._lock:
            for record in records:
                try:
                    if record.topic == OPERATOR_RESULTS.name:
                        finished = CommandResult.from_json(record.value).command_id
                        self._finished.add(finished)
                        self._pending.pop(finished, None)
                        continue
                    command = parse_union(COMMAND, record.value)
                except Rejected:
                    continue
                if not isinstance(command, Skip) or SKIPPING_SERVICES[command.topic] != self._service:
                    continue
                if command.command_id not in self._finished:
                    pending = _Pending(command, record, self._clock.monotonic())
                    self._pending.setdefault(command.command_id, pending)

    def offer(self) -> None:
        """Offer every pending command to the engine, which ignores those of partitions that it does not own."""
        now, now_ms = self._clock.monotonic(), self._clock.now_ms()
        with self._lock:
            pending = list(self._pending.values())
        for each in pending:
            command = each.command
            is_old = now_ms - each.record.timestamp > MAX_AGE_MS
            self._engine.request_skip(
                SkipRequest(
                    command_id=command.command_id,
                    topic=command.topic,
                    partition=command.partition,
                    offset=command.offset,
                    why=f"skipped by {command.issued_by}, command {command.command_id}: {command.reason}",
                    result=self._result_of(each),
                    refusal="the command is older than a day: issue it again" if is_old else None,
                    may_refuse=now >= each.read_at + REFUSE_AFTER_S,
                )
            )

    def _result_of(self, pending: _Pending) -> Callable[[Literal["done", "refused"], str], Output]:
        command = pending.command

        def result(status: Literal["done", "refused"], message: str) -> Output:
            at = from_ms(self._clock.now_ms())
            record = CommandResult(
                line=command.line,
                command_id=command.command_id,
                status=status,
                message=message[:2048],
                executor=self._service,
                finished_at=at,
            )
            log.warning("skip_command", command_id=command.command_id, status=status, message=message)
            return cloudevent(
                OPERATOR_RESULTS,
                command.command_id,
                record,
                source=self._service,
                ce_id=f"{command.command_id}/{self._service}",
                at=at,
                traceparent=traceparent_of(pending.record.headers),
                partition=0,
            )

        return result

    def _open(self) -> LogReader:
        try:
            return self._open_reader(TOPICS_READ)
        except Misconfigured as error:  # the topics job may still be running
            raise NotYet(str(error)) from error

    def _run(self) -> None:
        while not self._stopping.wait(OFFER_INTERVAL_S):
            if self._follower.caught_up:
                self.offer()
