"""Send feedback and responses from a thread in the background, so that an app never waits for Loopwright."""

from __future__ import annotations

import atexit
import json
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol

from loopwright.bulk import LATER
from loopwright.client import Loopwright
from loopwright.errors import LoopwrightError, OutboxFull
from loopwright.event_ids import new_event_id
from loopwright.feedback_kinds import FeedbackKind
from loopwright.models import RowResult
from loopwright.outbox import FileOutbox, Item, Kind, MemoryOutbox, Outbox, Refusal
from loopwright.retry import Retry
from loopwright.wire import (
    FeedbackValue,
    choices_of,
    feedback_body,
    preference_value,
    response_body,
    without_none,
)

MAX_WAITING: Final = 10_000
MAX_SPOOL_BYTES: Final = 256 * 1024 * 1024
ROWS_AT_ONCE: Final = 200
IDLE_S: Final = 1.0
"""How often an idle thread looks for rows that other processes left in the file, in seconds."""
LOG_EVERY_S: Final = 60.0
"""Shortest time between two warnings about the same trouble."""
log = logging.getLogger("loopwright.background")


class BulkClient(Protocol):
    """What sends the rows: a `Loopwright` client, or a fake one."""

    def send_many(self, events: Sequence[Mapping[str, Any]]) -> list[RowResult]:
        """Send feedback events."""

    def record_many(self, responses: Sequence[Mapping[str, Any]]) -> list[RowResult]:
        """Record responses."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the rows of this process, apart from those that wait."""

    sent: int = 0
    refused: int = 0
    """The service refused them: they are in `refused()`."""
    dropped: int = 0
    """There was no space for them."""


class BackgroundLoopwright:
    """Sends feedback and responses in the background. Thread-safe; works after a fork.

    Methods return at once and raise only for arguments that nothing could be made of. With a `spool` file, what they
    accepted outlives the process and outages: it is written before the method returns (at most `outbox.LOCK_S`
    seconds; usually a tenth of a millisecond). Without one, up to `max_waiting` rows wait in memory. What finds no
    space is dropped, counted and logged. Everything has an id, so what is sent twice counts once.

    Call `close` before the process ends, or use a `with` block; at a normal exit it is called with its default.

    Args:
        loop: The client; the default is one that environment variables configure.
        spool: SQLite file for what waits. Several processes may share it.
        max_waiting: Most rows that wait in memory.
        max_spool_bytes: Most bytes of the file.

    """

    def __init__(
        self,
        loop: BulkClient | None = None,
        *,
        spool: str | os.PathLike[str] | None = None,
        max_waiting: int = MAX_WAITING,
        max_spool_bytes: int = MAX_SPOOL_BYTES,
    ) -> None:
        self._loop = loop
        self._own_loop: Loopwright | None = None
        self._outbox: Outbox = (
            MemoryOutbox(max_waiting) if spool is None else FileOutbox(Path(spool), max_spool_bytes)
        )
        self._backoff = Retry()
        self._changed = threading.Condition()
        self._counts = Counts()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._logged: dict[str, float] = {}
        atexit.register(self.close)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_after_fork(weakref.ref(self)))

    @property
    def counts(self) -> Counts:
        """What became of the rows of this process."""
        return self._counts

    def waiting(self) -> int:
        """Return how many rows wait; with a spool, those of all processes that share it."""
        return self._outbox.waiting()

    def refused(self) -> list[Refusal]:
        """Return the newest rows that the service refused, with its reasons. Sending them again cannot help."""
        return self._outbox.refused()

    def send(
        self,
        response_id: str,
        user_id: str,
        kind: FeedbackKind,
        value: FeedbackValue,
        event_id: str | None = None,
        *,
        choice: int = 0,
        tags: Sequence[str] = (),
        occurred_at: datetime | None = None,
        line: str | None = None,
    ) -> str:
        """Send one feedback event, and return its id. See `Loopwright.send`."""
        event_id = event_id or new_event_id()
        event = feedback_body(
            response_id,
            user_id,
            kind,
            value,
            event_id=event_id,
            choice=choice,
            tags=tags,
            # When the user gave it, not when an outage has ended.
            occurred_at=occurred_at or datetime.now().astimezone(),
            line=line,
        )
        self._put("feedback", event)
        return event_id

    def thumbs_up(self, response_id: str, user_id: str, event_id: str | None = None) -> str:
        """Send a thumb up, and return the event's id."""
        return self.send(response_id, user_id, "thumbs", "up", event_id)

    def thumbs_down(self, response_id: str, user_id: str, event_id: str | None = None) -> str:
        """Send a thumb down, and return the event's id."""
        return self.send(response_id, user_id, "thumbs", "down", event_id)

    def rate(self, response_id: str, user_id: str, stars: int, event_id: str | None = None) -> str:
        """Send a rating from 1 to 5 stars, and return the event's id."""
        return self.send(response_id, user_id, "rating", stars, event_id)

    def correct(self, response_id: str, user_id: str, text: str, event_id: str | None = None) -> str:
        """Send what the answer should have been, and return the event's id."""
        return self.send(response_id, user_id, "correction", text, event_id)

    def comment(self, response_id: str, user_id: str, text: str, event_id: str | None = None) -> str:
        """Send a remark on the answer, and return the event's id."""
        return self.send(response_id, user_id, "comment", text, event_id)

    def prefer(
        self,
        response_id: str,
        user_id: str,
        *,
        over: str | None = None,
        under: str | None = None,
        event_id: str | None = None,
    ) -> str:
        """Send a preference for this answer or for another one, and return the event's id. See `Loopwright.prefer`."""
        return self.send(response_id, user_id, "preference", preference_value(over, under), event_id)

    def retract(
        self, response_id: str, user_id: str, retracted_event_id: str, event_id: str | None = None
    ) -> str:
        """Retract an earlier event of the same user, and return the id of the retraction."""
        return self.send(response_id, user_id, "retract", retracted_event_id, event_id)

    def record_response(
        self,
        response_id: str,
        messages: Sequence[Mapping[str, Any]],
        text: str | None = None,
        *,
        version: str,
        choices: Sequence[Mapping[str, Any]] | None = None,
        user_id: str | None = None,
        finish_reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        usage: Mapping[str, int] | None = None,
        latency_ms: float | None = None,
        created_at: datetime | None = None,
        line: str | None = None,
    ) -> None:
        """Record an answer that Loopwright did not generate: its `text`, or several `choices` in OpenAI's form.

        See `Loopwright.record_response`.

        Raises:
            ValueError: Neither or both of `text` and `choices` were passed.

        """
        if (text is None) == (choices is None):
            raise ValueError("pass either text or choices")
        self.record(
            response_body(
                response_id,
                messages,
                choices_of(text, finish_reason) if text is not None else choices or (),
                version=version,
                user_id=user_id,
                metadata=metadata,
                usage=usage,
                latency_ms=latency_ms,
                created_at=created_at or datetime.now().astimezone(),
                line=line,
            )
        )

    def record(self, response: Mapping[str, Any]) -> None:
        """Record a response that has the form of a body of `POST /v1/responses`."""
        self._put("response", response)

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until nothing waits, for at most `timeout` seconds. Return whether that is so.

        With a spool, what other processes wait to send counts, too.
        """
        end = time.monotonic() + timeout
        while self._outbox.waiting():
            self._start()
            left = end - time.monotonic()
            if left <= 0:
                return False
            with self._changed:
                self._changed.wait(min(left, 0.1))
        return True

    def close(self, timeout: float = 5.0) -> bool:
        """Send what waits, for at most `timeout` seconds, and stop. Return whether everything was sent.

        With a spool, the rest is sent by the next process that uses the file. Without one it is lost, and logged.
        """
        done = self.flush(timeout)
        atexit.unregister(self.close)
        with self._changed:
            self._closing.set()
            self._changed.notify_all()
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(timeout)
        if self._own_loop is not None:
            self._own_loop.close()
            self._own_loop = None
        if not done and isinstance(self._outbox, MemoryOutbox):
            log.warning("%d rows were not sent to Loopwright and are lost", self._outbox.waiting())
        self._outbox.close()
        return done

    def __enter__(self) -> BackgroundLoopwright:
        """Return this object."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def _put(self, kind: Kind, row: Mapping[str, Any]) -> None:
        content = json.dumps(without_none(row), allow_nan=False).encode()
        try:
            self._outbox.put(kind, content)
        except OutboxFull as error:
            self._count(dropped=1)
            self._warn("full", f"feedback for Loopwright is dropped: {error}")
            return
        self._start()
        with self._changed:
            self._changed.notify_all()

    def _start(self) -> None:
        with self._changed:
            if self._thread is None:
                self._closing.clear()
                self._thread = threading.Thread(
                    target=self._send_all, name="loopwright-background", daemon=True
                )
                self._thread.start()

    def _restart_in_child(self) -> None:
        """Take new locks, because the parent's may be held, and start a thread with the next row."""
        self._changed = threading.Condition()
        self._thread = None
        self._own_loop = None  # the parent's connections are the parent's
        self._outbox.after_fork()

    def _send_all(self) -> None:
        failures = 0
        while not self._closing.is_set():
            items = self._outbox.take(ROWS_AT_ONCE)
            responses = self._send("response", items)
            feedback = self._send("feedback", items)
            failures = 0 if responses and feedback else failures + 1
            with self._changed:
                self._changed.notify_all()
                if not self._closing.is_set() and (not items or failures):
                    self._changed.wait(self._backoff.backoff(failures) if failures else IDLE_S)

    def _send(self, kind: Kind, items: Sequence[Item]) -> bool:
        """Send the rows of one kind. Return whether none has to be sent again."""
        items = [item for item in items if item.kind == kind]
        if not items:
            return True
        numbers = [item.number for item in items]
        try:
            loop = self._client()
            send = loop.record_many if kind == "response" else loop.send_many
            results = send([item.row for item in items])
        except Exception as error:  # noqa: BLE001 - the thread must not end
            # All rows wait, also with a wrong key: a person corrects it.
            self._outbox.release(numbers)
            reason = str(error) if isinstance(error, LoopwrightError) else repr(error)
            self._warn("failed", f"{len(items)} rows wait for Loopwright: {reason}")
            return False
        found = list(zip(items, results, strict=True))
        later = [item.number for item, result in found if result.status_code in LATER]
        done = [item.number for item, result in found if not result.is_refused]
        # Counted first: what no longer waits is counted when `flush` returns.
        self._count(sent=len(done), refused=len(items) - len(done) - len(later))
        self._outbox.remove(done)
        self._outbox.release(later)
        for item, result in found:
            if result.is_refused and result.status_code not in LATER:
                reason = f"{result.code}: {result.detail}"
                log.warning("Loopwright refused %s: %s", item.row.get("response_id"), reason)
                self._outbox.refuse(item, reason)
        return not later

    def _client(self) -> BulkClient:
        if self._loop is not None:
            return self._loop
        if self._own_loop is None:
            # The thread waits and tries again itself, so that `close` never waits for a series of attempts.
            self._own_loop = Loopwright(retry=Retry(attempts=1))
        return self._own_loop

    def _count(self, sent: int = 0, refused: int = 0, dropped: int = 0) -> None:
        with self._changed:
            now = self._counts
            self._counts = Counts(now.sent + sent, now.refused + refused, now.dropped + dropped)

    def _warn(self, trouble: str, text: str) -> None:
        """Log a warning, unless one about the same trouble was logged a moment ago."""
        now = time.monotonic()
        if now - self._logged.get(trouble, -LOG_EVERY_S) >= LOG_EVERY_S:
            self._logged[trouble] = now
            log.warning("%s", text)


def _after_fork(background: weakref.ref[BackgroundLoopwright]) -> Callable[[], None]:
    def restart() -> None:
        found = background()
        if found is not None:
            found._restart_in_child()

    return restart
