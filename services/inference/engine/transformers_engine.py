"""The one thread that does all torch work: it takes waiting requests in batches, and errands between them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol, TypeVar

import structlog

from services.inference.core.generation_request import (
    BatchRow,
    Decode,
    GenerationRequest,
    GenerationResult,
    Sampling,
)
from shared.errors import BadArtifact, LoopwrightError, Overloaded, Retryable

T = TypeVar("T")
IDLE_S = 0.5
WAIT_SHARE, MAX_WAIT_S = 0.02, 0.25
"""After a batch its clients have so much of its time, and at most so long, to ask again and share the next one."""
log = structlog.get_logger(__name__)


class ModelRunner(Protocol):
    """What the engine needs of the model: `adapters.Weights`. `version` None is the base."""

    def load(self, version: str, folder: Path) -> None: ...

    def unload(self, version: str) -> None: ...

    def smoke(self, version: str | None) -> None: ...

    def warm(self, version: str | None) -> None: ...

    def generate(self, version: str | None, rows: Sequence[BatchRow], sampling: Sampling) -> None: ...


class TransformersEngine:
    """Admission queue, micro-batches, errands.

    Torch is used by this thread alone: on a CPU a second one that computes costs much of the speed (measured). A
    batch is a set of waiting asks of one version with equal sampling, oldest first; it runs to its end by
    one `generate`. Each ask that `submit` took is ended exactly once.
    """

    def __init__(
        self,
        make: Callable[[], ModelRunner],
        decode: Decode,
        *,
        base: str,
        max_batch: int = 16,
        max_batch_tokens: int = 32_768,
        max_waiting: int = 256,
        batch_wait_s: float = 0.01,
    ) -> None:
        self._make = make
        self._decode = decode
        self._base = base
        self._max_batch = max_batch
        self._max_batch_tokens = max_batch_tokens
        self._max_waiting = max_waiting
        self._batch_wait_s = batch_wait_s
        self._waiting: deque[GenerationRequest] = deque()
        self._errands: deque[Callable[[ModelRunner], None]] = deque()
        self._running: list[GenerationRequest] = []
        self._changed = threading.Condition()
        self._closing = False
        self._batch_ended = self._batch_took = 0.0
        self._expected = max_batch
        self.loaded: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Returns at once; `loaded` is done when the base is in memory and warm, or holds why it is not."""
        self._thread.start()

    def submit(self, ask: GenerationRequest) -> None:
        """Raises `Overloaded` (the queue is full) or `Retryable` (stopping); then the ask is the caller's
        to end."""
        with self._changed:
            if self._closing:
                raise Retryable("this replica is stopping; ask again")
            if len(self._waiting) >= self._max_waiting:
                raise Overloaded(f"{self._max_waiting} requests are waiting already; ask again in a moment")
            self._waiting.append(ask)
            self._changed.notify_all()

    def waiting(self) -> int:
        with self._changed:
            return len(self._waiting)

    def load(self, version: str, folder: Path) -> None:
        """Loads, tries and warms a version, between batches; blocks until done. Raises `BadArtifact`; then
        it is gone."""
        self._call(lambda computer: computer.load(version, folder))
        try:
            self._call(lambda computer: computer.smoke(version))
            self._call(lambda computer: computer.warm(version))
        except Exception as error:
            self.unload(version)
            if isinstance(error, LoopwrightError):
                raise
            raise BadArtifact(f"{version} cannot answer: {type(error).__name__}: {error}") from error

    def unload(self, version: str) -> None:
        """Comes after what was asked for before it; does not wait."""
        self._errand(lambda computer: computer.unload(version))

    def stop(self, timeout: float) -> None:
        """Takes no more; waiting asks fail, running ones may finish for `timeout` seconds and are cancelled
        then."""
        with self._changed:
            self._closing = True
            left, self._waiting = list(self._waiting), deque()
            self._changed.notify_all()
        for ask in left:
            ask.end(GenerationResult("failed", "the replica stopped before it came to this request"))
        self._thread.join(timeout)
        if self._thread.is_alive():
            for ask in list(self._running):
                ask.cancel()
            self._thread.join(timeout)

    def _errand(self, work: Callable[[ModelRunner], T]) -> Future[T]:
        future: Future[T] = Future()

        def run(computer: ModelRunner) -> None:
            try:
                future.set_result(work(computer))
            except Exception as error:  # noqa: BLE001 - it belongs to whoever asked; the thread must live on
                log.warning("errand_failed", error=str(error))
                future.set_exception(error)

        with self._changed:
            if self._closing:
                future.set_exception(Retryable("this replica is stopping"))
                return future
            self._errands.append(run)
            self._changed.notify_all()
        return future

    def _call(self, work: Callable[[ModelRunner], T]) -> T:
        return self._errand(work).result()

    def _run(self) -> None:
        try:
            computer = self._make()
            computer.smoke(None)
            computer.warm(None)
        except Exception as error:  # noqa: BLE001 - handed to whoever waits for `loaded`
            self.loaded.set_exception(error)
            return
        self.loaded.set_result(None)
        while self._turn(computer):
            pass
        while self._errands:
            self._errands.popleft()(computer)

    def _turn(self, computer: ModelRunner) -> bool:
        """One errand or one batch. False when stopping."""
        with self._changed:
            self._changed.wait_for(lambda: self._errands or self._waiting or self._closing, IDLE_S)
            if self._closing:
                return False
            errand = self._errands.popleft() if self._errands else None
        if errand is not None:
            errand(computer)
            return True
        batch = self._take()
        if batch:
            self._generate(computer, batch)
        return True

    def _take(self) -> list[GenerationRequest]:
        """The next batch, after a short wait for company.

        Clients whose answers ended together ask again together: without the wait the first of them would get a
        batch of its own, and the others would wait for all of it, again and again. After a batch the wait ends as
        soon as everybody of it is back, so a lone client never waits.
        """
        with self._changed:
            if not self._waiting:
                return []
            first = self._waiting[0].admitted_at
            after = self._batch_ended + max(
                self._batch_wait_s, min(MAX_WAIT_S, WAIT_SHARE * self._batch_took)
            )
            back = self._expected if first <= after else self._max_batch
            until = max(first + self._batch_wait_s, after)
            while sum(ask.n for ask in self._waiting) < min(back, self._max_batch) and not self._closing:
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            gone = [ask for ask in self._waiting if ask.cancelled]
            self._waiting = deque(ask for ask in self._waiting if not ask.cancelled)
            batch = select_batch(self._waiting, self._max_batch, self._max_batch_tokens)
            chosen = {id(ask) for ask in batch}
            self._waiting = deque(ask for ask in self._waiting if id(ask) not in chosen)
        for ask in gone:
            ask.end(GenerationResult("cancelled"))
        return batch

    def _generate(self, computer: ModelRunner, batch: list[GenerationRequest]) -> None:
        self._running = batch
        started = time.monotonic()
        rows = []
        for ask in batch:
            ask.rows = [BatchRow(ask, index, self._decode) for index in range(ask.n)]
            rows += ask.rows
        version = None if batch[0].version == self._base else batch[0].version
        try:
            computer.generate(version, rows, batch[0].sampling)
        except Exception as error:
            # Whatever one batch ran into (memory, a model's bug), the next one deserves its chance.
            log.exception("batch_failed", version=batch[0].version, asks=len(batch))
            for ask in batch:
                ask.end(GenerationResult("failed", f"{type(error).__name__}: {error}"[:1000]))
        for ask in batch:
            ask.end_if_done()
            ask.end(GenerationResult("failed", "the model stopped before the answer was complete"))
        self._running = []
        self._batch_ended = time.monotonic()
        self._batch_took = self._batch_ended - started
        with self._changed:
            self._expected = len(rows) + sum(ask.n for ask in self._waiting)


def select_batch(
    waiting: Sequence[GenerationRequest], max_rows: int, max_tokens: int
) -> list[GenerationRequest]:
    """The oldest ask, and in order those that can share its batch: same version and sampling, within the
    bounds on rows and on padded tokens. The oldest always goes, so nothing waits for ever."""
    batch: list[GenerationRequest] = []
    rows = prompt = answer = 0
    for ask in waiting:
        if batch and (batch[0].alone or ask.batch_key != batch[0].batch_key):
            continue
        longest = max(prompt, len(ask.prompt)), max(answer, ask.max_tokens)
        if batch and (rows + ask.n > max_rows or (rows + ask.n) * sum(longest) > max_tokens):
            continue
        batch.append(ask)
        rows, (prompt, answer) = rows + ask.n, longest
    return batch
