"""The engine that runs a transformers model in this process: one thread, requests that join between steps."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Final

import structlog

from services.inference.core.generation_request import GenerationRequest
from services.inference.engine.generation_rows import ChoiceRow, QueuedGeneration
from services.inference.engine.loaded_model import Batch, LoadedModel, Models, Tokenizer
from services.inference.engine.port import GenerationListener
from services.inference.engine.refusals import (
    SHUT_DOWN,
    context_exceeded,
    not_loaded,
    queue_full,
    shutting_down,
)
from services.inference.engine.smoke_test import SmokeTest
from shared.errors import Retryable

LOAD_SLICE_S: Final = 0.05
"""While there are requests, loading a version takes about this long between two steps, or longer:"""
LOAD_SHARE: Final = 0.5
"""it takes at least this share of the time of a step, so that on a slow processor a version is loaded in time, too."""
log = structlog.get_logger(__name__)


class TransformersEngine:
    """`InferenceEngine` on a model in this process.

    One thread does all torch work: on a CPU, a second computing thread costs much of the speed. It computes one step
    after the other. Between steps, waiting requests join, ended ones leave, and versions are loaded bit by bit.

    Requests start in the order in which they came, with two exceptions: a version that already has as many rows as it
    may have does not keep other versions waiting, and the choices of a request that has begun come before new
    requests.

    Args:
        make_model: Loads the base model. Called in the engine's thread.
        tokenizer: Tokenizer of the base model.
        base: Version name of the base.
        max_waiting: Limit of waiting requests.

    """

    def __init__(
        self,
        make_model: Callable[[], LoadedModel],
        tokenizer: Tokenizer,
        *,
        base: str,
        max_waiting: int = 256,
    ) -> None:
        self._make_model = make_model
        self._tokenizer = tokenizer
        self._base = base
        self._max_waiting = max_waiting
        self._max_length = tokenizer.max_context
        self._changed = threading.Condition()
        self._loading = threading.Lock()
        self._closing = False
        self._versions = [base]
        self._waiting: deque[QueuedGeneration] = deque()
        self._begun: deque[ChoiceRow] = deque()
        self._running: tuple[ChoiceRow, ...] = ()
        self._tasks: deque[tuple[Callable[[Models], Iterator[None]], Future[None]]] = deque()
        self._task: tuple[Iterator[None], Future[None]] | None = None
        self._arriving: str | None = None
        self._step_s = 0.0
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
            generation.end("failed", SHUT_DOWN)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            for row in self._running:
                row.generation.cancel()
            self._thread.join(timeout_s)

    async def submit(self, request: GenerationRequest, listener: GenerationListener) -> QueuedGeneration:
        """Tokenize a request and queue it. See `InferenceEngine.submit`."""
        prompt = await asyncio.to_thread(self._tokenizer.encode, request.messages)
        generation = self._accept(request, prompt, listener)
        with self._changed:
            if self._closing:
                raise shutting_down()
            if request.version not in self._versions:
                raise not_loaded(request.version)
            if len(self._waiting) >= self._max_waiting:
                raise queue_full(self._max_waiting)
            self._waiting.append(generation)
            self._changed.notify_all()
        return generation

    def _accept(
        self, request: GenerationRequest, prompt: list[int], listener: GenerationListener
    ) -> QueuedGeneration:
        """Return the request with the limits that context and cache set. Raises `ContextExceeded`."""
        limit = min(self._tokenizer.max_context, self._max_length)
        remaining = limit - len(prompt)
        if remaining < 1:
            by_cache = limit < self._tokenizer.max_context
            cause = " with this replica's LOOPWRIGHT_INFERENCE_KV_CACHE_MB" if by_cache else ""
            raise context_exceeded(len(prompt), limit, cause)
        return QueuedGeneration(
            request,
            prompt,
            min(request.max_tokens, remaining),
            request.stop + self._tokenizer.stop_strings,
            listener,
        )

    def load(self, version: str, folder: Path) -> None:
        """Load a version and let it answer, between other requests' steps. See `InferenceEngine.load`."""
        with self._loading:
            if version in self.versions():
                return
            with self._changed:
                self._arriving = version
            try:
                self._schedule(lambda models: models.load(version, folder)).result()
                self._queue_smoke_test(version).check()
                with self._changed:
                    if self._closing:
                        raise Retryable("this replica is shutting down")
                    self._versions.append(version)
            finally:
                with self._changed:
                    self._arriving = None
                    self._changed.notify_all()

    def unload(self, version: str) -> None:
        """Unload a version once its accepted requests have ended. See `InferenceEngine.unload`."""
        with self._changed:
            if version == self._base or version not in self._versions:
                return
            self._versions.remove(version)
            self._changed.notify_all()

    def versions(self) -> tuple[str, ...]:
        """Return the versions that accept requests, the base first."""
        with self._changed:
            return tuple(self._versions)

    def _schedule(self, work: Callable[[Models], Iterator[None]]) -> Future[None]:
        """Run `work` in the engine's thread, its steps between those of the rows."""
        future: Future[None] = Future()
        with self._changed:
            if self._closing:
                future.set_exception(Retryable("this replica is shutting down"))
            else:
                self._tasks.append((work, future))
                self._changed.notify_all()
        return future

    def _queue_smoke_test(self, version: str) -> SmokeTest:
        """Let a version answer a short request before all others."""
        test = SmokeTest(version, self._tokenizer.encode)
        with self._changed:
            if self._closing:
                test.generation.end("failed", SHUT_DOWN)
            else:
                self._waiting.appendleft(test.generation)
                self._changed.notify_all()
        return test

    # --- the engine's thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            model = self._make_model()
            self._max_length = model.batch.max_length
            test = self._queue_smoke_test(self._base)
            while not test.result.done():
                self._run_once(model)
            test.check()
        except Exception as error:  # noqa: BLE001 - the future carries it
            self._started.set_exception(error)
            return
        self._started.set_result(None)
        while not self._closing or model.batch.rows or self._begun:
            try:
                self._run_once(model)
            except Exception as error:
                log.exception("engine_step_failed")
                self._fail_all(f"{type(error).__name__}: {error}")
        with self._changed:
            unfinished = [future for _, future in (*self._tasks, *([self._task] if self._task else []))]
        for future in unfinished:
            future.set_exception(Retryable("this replica is shutting down"))

    def _fail_all(self, error: str) -> None:
        """End all requests after a bug, so that none waits for ever and the next ones have a chance."""
        with self._changed:
            waiting, self._waiting = list(self._waiting), deque()
        begun, self._begun = self._begun, deque()
        for generation in (*waiting, *(row.generation for row in (*self._running, *begun))):
            generation.end("failed", error)

    def _run_once(self, model: LoadedModel) -> None:
        """Wait for work, then load a little, let rows leave and join, and run one step."""
        batch = model.batch
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._closing
                    or self._task
                    or self._tasks
                    or self._waiting
                    or self._begun
                    or batch.rows
                    or self._unused(model)
                )
            )
        self._work_on_task(model)
        batch.remove_ended()
        self._admit(batch)
        self._running = (*batch.rows, *self._begun)
        if batch.rows:
            start = time.monotonic()
            batch.step()
            self._step_s = time.monotonic() - start
        for version in self._unused(model):
            model.models.unload(version)

    def _work_on_task(self, model: LoadedModel) -> None:
        """Work on the oldest task: to its end, or for a slice of time if there are requests."""
        if self._task is None:
            with self._changed:
                if not self._tasks:
                    return
                work, future = self._tasks.popleft()
            self._task = work(model.models), future
        steps, future = self._task
        until = time.monotonic() + max(LOAD_SLICE_S, LOAD_SHARE * self._step_s)
        try:
            for _ in steps:
                if (model.batch.rows or self._waiting) and time.monotonic() > until:
                    return
            future.set_result(None)
        except Exception as error:  # noqa: BLE001 - the future carries it; the thread must survive
            log.warning("engine_task_failed", error=str(error))
            future.set_exception(error)
        self._task = None

    def _admit(self, batch: Batch) -> None:
        """Let waiting rows join the batch, as far as it has room."""
        begun, self._begun = self._begun, deque()
        for row in begun:
            self._join(batch, row)
        with self._changed:
            waiting = list(self._waiting)
        left: set[int] = set()
        for generation in waiting:
            if generation.cancelled:
                generation.end("cancelled")
            elif generation.max_length > batch.max_length:
                generation.end("failed", "the request does not fit into LOOPWRIGHT_INFERENCE_KV_CACHE_MB")
            elif self._begun and not batch.has_memory(self._begun[0].max_length):
                break
            elif not batch.has_place(generation.request.version):
                continue
            elif not batch.has_memory(generation.max_length):
                break
            else:
                for row in generation.start_rows(self._tokenizer.decode):
                    self._join(batch, row)
            left.add(id(generation))
        with self._changed:
            self._waiting = deque(one for one in self._waiting if id(one) not in left)

    def _join(self, batch: Batch, row: ChoiceRow) -> None:
        """Add a row to the batch, or to the rows that wait for a place."""
        if row.generation.cancelled:
            row.cancel()
            row.generation.end_if_finished()
        elif row.generation.ended:
            return
        elif batch.has_place(row.version) and batch.has_memory(row.max_length):
            batch.add(row)
        else:
            self._begun.append(row)

    def _unused(self, model: LoadedModel) -> list[str]:
        """Return the versions in memory that accept no requests and have none left."""
        in_memory = model.models.versions()
        with self._changed:
            used = {*self._versions, self._arriving}
            used.update(generation.request.version for generation in self._waiting)
        used.update(row.version for row in (*model.batch.rows, *self._begun))
        return [version for version in in_memory if version not in used]
