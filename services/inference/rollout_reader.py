"""The thread that follows `model.rollout`."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from services.inference.version_swap import Refusal, VersionSwap
from shared.dead_letters import make_dead_letter
from shared.errors import Fatal, LoopwrightError, Rejected, Retryable
from shared.ports import LogReader, Publisher
from shared.records import Record
from shared.telemetry import DEAD_LETTERED, Readiness
from shared.topics import DEAD_LETTERS, MAX_MESSAGE_BYTES
from shared.versions import RolloutRecord

POLL_S = 0.25
AGAIN_S = 15.0
"""Between two tries of a record whose refusal may pass."""
RECONNECT_S = 1.0
log = structlog.get_logger(__name__)


class RolloutReader:
    """Reads the topic from its beginning. Of what was there at start only the newest record is applied, so
    that a replica does not load every version there ever was; it is ready when it has. Garbage goes to the
    dead letters."""

    def __init__(
        self,
        open_reader: Callable[[], LogReader],
        takeover: VersionSwap,
        publisher: Publisher,
        readiness: Readiness,
        on_fatal: Callable[[LoopwrightError], None],
    ) -> None:
        self._open = open_reader
        self._takeover = takeover
        self._publisher = publisher
        self._readiness = readiness
        self._on_fatal = on_fatal
        self._first: RolloutRecord | None = None
        self._caught_up = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rollout", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(10.0)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._follow()
            except Retryable as error:
                if not self._caught_up:
                    self._readiness.set("rollout", ok=False, detail=str(error))
                log.warning("rollout_unreadable", error=str(error))
                self._stopping.wait(RECONNECT_S)
            except LoopwrightError as error:
                self._on_fatal(error)
                return
            except Exception as error:
                # A thread that dies unseen would leave this replica on an old version for ever.
                log.exception("rollout_reader_failed")
                self._on_fatal(Fatal(f"reading model.rollout: {type(error).__name__}: {error}"))
                return

    def _follow(self) -> None:
        reader = self._open()
        idle = 0.0
        try:
            while not self._stopping.is_set():
                records = reader.poll(POLL_S)
                for record in records:
                    self._take(record)
                if not self._caught_up and reader.at_end():
                    self._catch_up()
                idle = 0.0 if records else idle + POLL_S
                if idle >= AGAIN_S:
                    idle = 0.0
                    self._takeover.again()
        finally:
            reader.close()

    def _catch_up(self) -> None:
        if self._first is not None:
            self._takeover.apply(self._first)
        self._caught_up = True
        self._readiness.set("rollout", ok=True, detail=describe_refusals(self._takeover.refusals))

    def _take(self, record: Record) -> None:
        if record.value is None:  # a tombstone: compaction removed a line
            return
        try:
            wanted = RolloutRecord.from_json(record.value)
        except Rejected as error:
            self._bury(record, error)
            return
        if self._caught_up:
            self._takeover.apply(wanted)
        elif self._takeover.newer(wanted) and (self._first is None or wanted.seq > self._first.seq):
            self._first = wanted

    def _bury(self, record: Record, error: Rejected) -> None:
        """Not waited for: a broker that is away now would stop the reader, and the record stays where it
        is."""
        DEAD_LETTERED.labels("inference", error.code).inc()
        log.error("rollout_record_dead", offset=record.offset, code=error.code, error=str(error))
        self._publisher.publish(
            make_dead_letter(DEAD_LETTERS.name, record, error, "inference", MAX_MESSAGE_BYTES)
        )


def describe_refusals(refusals: tuple[Refusal, ...]) -> str:
    """For `/readyz`: what was refused, or nothing."""
    return "; ".join(f"refused {r.version} (seq {r.seq}): {r.message}" for r in refusals)
