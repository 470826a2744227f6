"""What routes and pages share: the console's state, the trainer's live status, and sending commands."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

from uuid6 import uuid7

from services.console.core import responses
from services.console.core.command_requests import CommandRequest, to_command
from services.console.core.ledger import CountedRecords, window_start_ms
from services.console.core.projection import Projection
from services.console.core.responses import Json
from services.console.settings import SERVICE, ConsoleSettings
from shared.adapters import redis_keys
from shared.cloudevents import cloudevent
from shared.errors import BrokerUnavailable, NotPermitted, Overloaded, Retryable
from shared.events import from_ms
from shared.live_status import CollectedStatus, QuarantineStatus, RunProgress
from shared.ports import Cache, Clock, Publisher
from shared.records import Record
from shared.serving import ServingReport
from shared.topics import OPERATOR_COMMANDS


class ConsoleBackend:
    """State of the console, and the operations on it. Thread-safe.

    `count_feedback` counts the records of `feedback.events` since a time; it raises `Retryable` if Kafka is not
    reachable.
    """

    def __init__(
        self,
        settings: ConsoleSettings,
        publisher: Publisher,
        cache: Cache,
        clock: Clock,
        count_feedback: Callable[[int], CountedRecords],
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.state = Projection()
        self._publisher = publisher
        self._cache = cache
        self._count_feedback = count_feedback
        self._lock = threading.Lock()

    def apply(self, records: Sequence[Record]) -> None:
        """Fold records of the followed topics into the state."""
        with self._lock:
            self.state.apply(records)

    # --- live status of the trainer ---

    def collected(self, line: str) -> CollectedStatus | None:
        """Return the progress towards the line's next run, or None if it is not known."""
        return CollectedStatus.from_json(self._cache.get(redis_keys.collected(line)))

    def run_progress(self, line: str) -> RunProgress | None:
        """Return the progress of the line's newest run, or None if it is not known."""
        return RunProgress.from_json(self._cache.get(redis_keys.run_progress(line)))

    def quarantine(self, line: str) -> Json:
        """Return the events of the line that can be released from quarantine."""
        return responses.quarantine(QuarantineStatus.from_json(self._cache.get(redis_keys.quarantine(line))))

    # --- state ---

    def status(self, line: str, collected: CollectedStatus | None, run: RunProgress | None) -> Json:
        """Return what the loop is doing. `accepted` and `pending` are null if Kafka is not reachable."""
        since_ms = window_start_ms(self.clock.now_ms())
        with self._lock:
            everything, recent = self.state.ledger.counts(), self.state.ledger.counts(since_ms)
        # Counted after the ledger is read, so that every event in the ledger is among the accepted ones.
        try:
            counted = self._count_feedback(since_ms)
        except Retryable:
            counted = None
        complete = counted is None or counted.complete
        with self._lock:
            return responses.status(
                self.state,
                line,
                everything if complete else recent,
                records=None if counted is None else counted.records,
                since_ms=None if complete else since_ms,
                collected=collected,
                run=run,
                live=self._live(line),
            )

    def versions(self, line: str) -> list[Json]:
        """Return all versions of the line with their verdicts and gate metrics."""
        with self._lock:
            return responses.versions(self.state, line, self._live(line))

    def rollout(self, line: str) -> list[Json]:
        """Return the line's rollout records, newest first."""
        with self._lock:
            return responses.rollout(self.state, line)

    def rollout_state(self, line: str) -> Json | None:
        """Return what serves and the figures of the canary, or None before the line's base is adopted."""
        with self._lock:
            return responses.rollout_state(self.state, line, self._live(line))

    def dead_letters(self) -> list[Json]:
        """Return the newest dead letters, newest first, without their content."""
        with self._lock:
            return responses.dead_letters(self.state)

    def replayed_by(self) -> dict[str, str]:
        """Return position of each replayed dead letter -> the command that replayed it."""
        with self._lock:
            return dict(self.state.replayed)

    def replayed_count(self, topic: str) -> int:
        """Return how many records of a topic are replays of dead letters."""
        with self._lock:
            return self.state.replayed_by_topic[topic]

    def _live(self, line: str) -> list[ServingReport]:
        """Return the reports of the replicas that run. The caller holds the lock."""
        return self.state.replicas.live(line, self.clock.now_ms())

    # --- commands ---

    async def send_command(self, request: CommandRequest, *, issued_by: str) -> str:
        """Write a command to the log and return its id. A command that is on the log already is not written again.

        `issued_by` is the name of the API key whose holder sends it.

        Raises:
            Rejected: if the request is invalid.
            Conflict: if another command has its id.
            BrokerUnavailable: if Kafka does not acknowledge in time. The command may still be executed.

        """
        now = from_ms(self.clock.now_ms())
        with self._lock:
            command = to_command(
                request,
                self.state,
                line=self.settings.line,
                command_id=str(uuid7()),
                issued_by=issued_by,
                now=now,
            )
            if command.command_id in self.state.commands:
                return command.command_id
        record = cloudevent(
            OPERATOR_COMMANDS, command.line, command, source=SERVICE, ce_id=command.command_id, at=now
        )
        timeout_s = self.settings.ack_timeout_s
        try:
            await asyncio.wait_for(asyncio.wrap_future(self._publisher.publish(record)), timeout_s + 1)
        except NotPermitted:
            raise
        except (TimeoutError, BrokerUnavailable, Overloaded) as error:
            raise BrokerUnavailable(
                f"Kafka did not acknowledge command {command.command_id} within {timeout_s:g} s, so it may or may not "
                f"be executed: send it again with the same command_id, or check GET /api/commands/{command.command_id}"
            ) from error
        with self._lock:
            self.state.add_command(command)
        return command.command_id

    def command(self, command_id: str) -> Json | None:
        """Return the result of a command, `pending` if it has none yet, or None if the command is unknown."""
        with self._lock:
            return responses.command(self.state, command_id)
