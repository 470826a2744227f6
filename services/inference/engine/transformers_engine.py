"""The engine that runs a transformers model in this process: one thread, requests in micro-batches."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol, TypeVar

import structlog

from services.inference.core.generation_request import ContextExceeded, GenerationRequest, Sampling
from services.inference.engine.batching import BatchRow, QueuedGeneration, select_batch
from services.inference.engine.port import GenerationListener
from shared.errors import BadArtifact, LoopwrightError, Overloaded, Retryable, UnknownVersion
from shared.events import Message

T = TypeVar("T")
POLL_S = 0.5
REJOIN_SHARE, MAX_REJOIN_S = 0.02, 0.25
"""After a batch, its clients have this share of its duration, and at most this time, to join the next batch."""
log = structlog.get_logger(__name__)


class ModelRunner(Protocol):
    """The model as the engine's thread uses it: `LoraModel`. The version None is the base."""

    def load(self, version: str, folder: Path) -> None:
        """Load an adapter. Raises `BadArtifact`, and then nothing has changed."""

    def unload(self, version: str) -> None:
        """Free an adapter's memory."""

    def smoke_test(self, version: str | None) -> None:
        """Generate a short answer. Raises `BadArtifact` if the model's output is unusable."""

    def warm_up(self, version: str | None) -> None:
        """Run a small batch, so that no request pays for lazy initialisation."""

    def generate(self, version: str | None, rows: Sequence[BatchRow], sampling: Sampling) -> None:
        """Generate until every row has finished, pushing each token to its row."""


class Tokenizer(Protocol):
    """The tokenizer as the engine uses it, from several threads: `ChatTokenizer`."""

    @property
    def max_context(self) -> int:
        """Limit of prompt and answer together, in tokens."""

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Stop strings that the chat template needs."""

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Return the prompt's token ids. Raises `Rejected` if the template refuses the conversation."""

    def decode(self, tokens: list[int]) -> str:
        """Return the text of token ids."""


class TransformersEngine:
    """`InferenceEngine` on a model in this process.

    One thread does all torch work: on a CPU, a second computing thread costs much of the speed. It runs one micro-batch
    after the other, each to its end, and loads and unloads versions between batches. A batch consists of waiting
    requests for one version with equal sampling, oldest first.

    Args:
        make_runner: Loads the base model. Called in the engine's thread.
        tokenizer: Tokenizer of the base model.
        base: Version name of the base.
        max_batch: Limit of rows (choices) in a batch.
        max_batch_tokens: Limit of tokens in a batch, padding included.
        max_waiting: Limit of waiting requests.
        batch_wait_s: How long a batch waits for more requests.

    """

    def __init__(
        self,
        make_runner: Callable[[], ModelRunner],
        tokenizer: Tokenizer,
        *,
        base: str,
        max_batch: int = 16,
        max_batch_tokens: int = 32_768,
        max_waiting: int = 256,
        batch_wait_s: float = 0.01,
    ) -> None:
        self._make_runner = make_runner
        self._tokenizer = tokenizer
        self._base = base
        self._max_batch = max_batch
        self._max_batch_tokens = max_batch_tokens
        self._max_waiting = max_waiting
        self._batch_wait_s = batch_wait_s
        self._changed = threading.Condition()
        self._closing = False
        self._versions = [base]
        self._waiting: deque[QueuedGeneration] = deque()
        self._running: list[QueuedGeneration] = []
        self._tasks: deque[Callable[[ModelRunner], None]] = deque()
        self._batch_ended_at = self._batch_duration_s = 0.0
        self._expected_rows = max_batch
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def supported_options(self) -> frozenset[str]:
        """Return no options. See `InferenceEngine.supported_options`."""
        return frozenset()

    def start(self) -> Future[None]:
        """Start the thread, which loads the base. See `InferenceEngine.start`."""
        self._thread.start()
        return self._started

    def stop(self, timeout_s: float) -> None:
        """Stop the thread. See `InferenceEngine.stop`."""
        with self._changed:
            self._closing = True
            unstarted, self._waiting = list(self._waiting), deque()
            self._changed.notify_all()
        for generation in unstarted:
            generation.end("failed", "the replica shut down before it processed this request")
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            for generation in list(self._running):
                generation.cancel()
            self._thread.join(timeout_s)

    async def submit(self, request: GenerationRequest, listener: GenerationListener) -> QueuedGeneration:
        """Tokenize a request and queue it. See `InferenceEngine.submit`."""
        prompt = await asyncio.to_thread(self._tokenizer.encode, request.messages)
        remaining = self._tokenizer.max_context - len(prompt)
        if remaining < 1:
            raise ContextExceeded(
                f"the conversation has {len(prompt)} tokens, but the model accepts at most "
                f"{self._tokenizer.max_context - 1}; shorten the conversation"
            )
        generation = QueuedGeneration(
            request,
            prompt,
            min(request.max_tokens, remaining),
            request.stop + self._tokenizer.stop_strings,
            listener,
        )
        with self._changed:
            if self._closing:
                raise Retryable("this replica is shutting down; send the request again")
            if request.version not in self._versions:
                raise UnknownVersion(f"the version {request.version} is not loaded")
            if len(self._waiting) >= self._max_waiting:
                raise Overloaded(
                    f"{self._max_waiting} requests are waiting already; send the request again in a moment"
                )
            self._waiting.append(generation)
            self._changed.notify_all()
        return generation

    def load(self, version: str, folder: Path) -> None:
        """Load, smoke-test and warm up a version between batches. See `InferenceEngine.load`."""
        if version in self.versions():
            return
        self._schedule(lambda runner: runner.load(version, folder)).result()
        try:
            self._schedule(lambda runner: runner.smoke_test(version)).result()
            self._schedule(lambda runner: runner.warm_up(version)).result()
        except Exception as error:
            self._schedule(lambda runner: runner.unload(version))
            if isinstance(error, LoopwrightError):
                raise
            raise BadArtifact(f"{version} cannot answer: {type(error).__name__}: {error}") from error
        with self._changed:
            self._versions.append(version)

    def unload(self, version: str) -> None:
        """Unload a version after the batches and tasks queued before. See `InferenceEngine.unload`."""
        with self._changed:
            if version == self._base or version not in self._versions:
                return
            self._versions.remove(version)
        self._schedule(lambda runner: runner.unload(version))

    def versions(self) -> tuple[str, ...]:
        """Return the versions that accept requests, the base first."""
        with self._changed:
            return tuple(self._versions)

    def _schedule(self, work: Callable[[ModelRunner], T]) -> Future[T]:
        """Run `work` in the engine's thread, between batches."""
        future: Future[T] = Future()

        def task(runner: ModelRunner) -> None:
            try:
                future.set_result(work(runner))
            except Exception as error:  # noqa: BLE001 - the future carries it; the thread must survive
                log.warning("engine_task_failed", error=str(error))
                future.set_exception(error)

        with self._changed:
            if self._closing:
                future.set_exception(Retryable("this replica is shutting down"))
                return future
            self._tasks.append(task)
            self._changed.notify_all()
        return future

    def _run(self) -> None:
        try:
            runner = self._make_runner()
            runner.smoke_test(None)
            runner.warm_up(None)
        except Exception as error:  # noqa: BLE001 - the future carries it
            self._started.set_exception(error)
            return
        self._started.set_result(None)
        while self._run_next(runner):
            pass
        while self._tasks:
            self._tasks.popleft()(runner)

    def _run_next(self, runner: ModelRunner) -> bool:
        """Run one task or one batch. Return False when the engine is shutting down."""
        with self._changed:
            self._changed.wait_for(lambda: self._tasks or self._waiting or self._closing, POLL_S)
            if self._closing:
                return False
            task = self._tasks.popleft() if self._tasks else None
        if task is not None:
            task(runner)
            return True
        batch = self._next_batch()
        if batch:
            self._run_batch(runner, batch)
        return True

    def _next_batch(self) -> list[QueuedGeneration]:
        """Wait a moment for requests that can share a batch, then take the batch out of the queue.

        Clients whose answers ended together send their next requests together. Without the wait, the first of them
        would get a batch of its own and the others would wait for it, again and again. After a batch, the wait ends
        as soon as all of its clients are back, so a single client never waits.
        """
        with self._changed:
            if not self._waiting:
                return []
            oldest = self._waiting[0].queued_at
            rejoin_until = self._batch_ended_at + max(
                self._batch_wait_s, min(MAX_REJOIN_S, REJOIN_SHARE * self._batch_duration_s)
            )
            expected = self._expected_rows if oldest <= rejoin_until else self._max_batch
            wait_until = max(oldest + self._batch_wait_s, rejoin_until)
            while self._waiting_rows() < min(expected, self._max_batch) and not self._closing:
                remaining = wait_until - time.monotonic()
                if remaining <= 0:
                    break
                self._changed.wait(remaining)
            cancelled = [generation for generation in self._waiting if generation.cancelled]
            self._waiting = deque(generation for generation in self._waiting if not generation.cancelled)
            batch = select_batch(self._waiting, self._max_batch, self._max_batch_tokens)
            selected = {id(generation) for generation in batch}
            self._waiting = deque(
                generation for generation in self._waiting if id(generation) not in selected
            )
        for generation in cancelled:
            generation.end("cancelled")
        return batch

    def _waiting_rows(self) -> int:
        return sum(generation.request.n for generation in self._waiting)

    def _run_batch(self, runner: ModelRunner, batch: list[QueuedGeneration]) -> None:
        self._running = batch
        started_at = time.monotonic()
        rows = [row for generation in batch for row in generation.start_rows(self._tokenizer.decode)]
        request = batch[0].request
        version = None if request.version == self._base else request.version
        try:
            runner.generate(version, rows, request.sampling)
        except Exception as error:
            # A failure of one batch, such as out of memory, need not happen to the next one.
            log.exception("batch_failed", version=request.version, requests=len(batch))
            for generation in batch:
                generation.end("failed", f"{type(error).__name__}: {error}"[:1000])
        for generation in batch:
            generation.end_if_finished()
            generation.end("failed", "the model stopped before the answer was complete")
        self._running = []
        self._batch_ended_at = time.monotonic()
        self._batch_duration_s = self._batch_ended_at - started_at
        with self._changed:
            self._expected_rows = len(rows) + self._waiting_rows()
