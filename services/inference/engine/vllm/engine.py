"""The inference engine in front of vLLM servers: implements the port with a thread that runs an event loop."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections import Counter
from collections.abc import Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, TypeVar

import structlog

from services.inference.core.generation_options import OPTION_NAMES
from services.inference.core.generation_request import GenerationRequest
from services.inference.engine import smoke_test
from services.inference.engine.port import GenerationListener
from services.inference.engine.refusals import (
    SHUT_DOWN,
    context_exceeded,
    not_loaded,
    queue_full,
    shutting_down,
)
from services.inference.engine.vllm.adapter_check import base_shapes, check_adapter
from services.inference.engine.vllm.adapter_folder import AdapterFolder
from services.inference.engine.vllm.addresses import EngineUrl
from services.inference.engine.vllm.chat_api import chat_call, needs_chat_api, refuse_control_text
from services.inference.engine.vllm.completions_api import Call, completion_call
from services.inference.engine.vllm.generation import VllmGeneration
from services.inference.engine.vllm.null_adapter import write_null_adapter
from services.inference.engine.vllm.replica import ExpectedBase
from services.inference.engine.vllm.replica_set import OnStatus, ReplicaSet
from services.inference.engine.vllm.server import open_session
from shared.adapters.base_model import PinnedBase
from shared.errors import NotYet, Retryable
from shared.events import Message

T = TypeVar("T")
HOUSEKEEPING_S = 20.0
log = structlog.get_logger(__name__)


class Tokenizer(Protocol):
    """The tokenizer as the engine uses it, from several threads: `ChatTokenizer`."""

    eos_token_ids: frozenset[int]
    template_kwargs: dict[str, Any]

    @property
    def max_context(self) -> int:
        """Limit of prompt and answer together, in tokens."""

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Stop strings that the chat template needs."""

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Return the prompt's token ids. Raises `Rejected` if the template refuses the conversation."""

    def control_text(self, text: str) -> str | None:
        """Return the first special token that a text spells out, or None."""


@dataclass(frozen=True, slots=True)
class VllmBase:
    """The base as the engine needs it.

    Attributes:
        version: Its version name.
        names: Names under which a server may serve it; the first is for messages.
        folder: Its files, to which adapters are compared.

    """

    version: str
    names: tuple[str, ...]
    folder: Path


def vllm_base(base: PinnedBase, line: str, served_as: str) -> VllmBase:
    """Return the base for the engine.

    Args:
        base: The pinned base.
        line: The line that is served.
        served_as: The only name or path under which servers may serve it, or an empty string.

    """
    version = base.ref(line).version
    names = (served_as,) if served_as else (base.name, str(base.path), version)
    return VllmBase(version, names, base.path)


class VllmEngine:
    """`InferenceEngine` in front of one or more vLLM servers.

    Prompts are built here and sent as token ids. Versions are LoRA adapters, loaded into each server from a folder
    that it shares with this process.

    Args:
        urls: The servers.
        base: The base model that all of them serve.
        tokenizer: Its tokenizer.
        adapter_dir: The shared folder.
        api_key: Key that the servers ask for, if any.
        max_waiting: Limit of requests that wait for their first token.
        stall_s: How long a server may be silent during an answer.
        on_status: Called after each change with whether a server is ready, and the state in words.
        poll_s: Time between two checks of a server.

    """

    def __init__(
        self,
        urls: Sequence[EngineUrl],
        base: VllmBase,
        tokenizer: Tokenizer,
        *,
        adapter_dir: Path,
        api_key: str | None = None,
        max_waiting: int = 256,
        stall_s: float = 120.0,
        on_status: OnStatus = lambda ok, detail: None,
        poll_s: float = 1.0,
    ) -> None:
        self._urls = urls
        self._base = base
        self._tokenizer = tokenizer
        self._adapters = AdapterFolder(adapter_dir, f"gateway-{secrets.token_hex(6)}")
        self._api_key = api_key
        self._max_waiting = max_waiting
        self._stall_s = stall_s
        self._on_status = on_status
        self._poll_s = poll_s
        self._shapes: dict[str, tuple[int, ...]] | None = None
        self._lock = threading.Lock()
        self._closing = False
        self._versions = [base.version]
        self._requests: Counter[str] = Counter()
        """Requests in flight of each version."""
        self._waiting = 0
        self._generations: set[VllmGeneration] = set()
        self._started: Future[None] = Future()
        self._stopped = asyncio.Event()
        self._request_ended = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop
        self._replicas: ReplicaSet
        self._changing: asyncio.Lock
        """Held while versions are loaded or unloaded."""
        self._thread = threading.Thread(target=self._run, name="vllm-engine", daemon=True)

    # --- start and stop ---

    def start(self) -> Future[None]:
        """Start the thread, which looks for the servers. See `InferenceEngine.start`."""
        self._loop = asyncio.new_event_loop()
        self._thread.start()
        return self._started

    def stop(self, timeout_s: float) -> None:
        """Stop the thread. The servers keep their versions. See `InferenceEngine.stop`."""
        with self._lock:
            self._closing = True
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._end_requests(timeout_s), self._loop).result()
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10.0)

    async def _end_requests(self, timeout_s: float) -> None:
        generations = list(self._generations)
        for generation in generations:
            if not generation.started:
                generation.stop("failed", SHUT_DOWN)
        for _ in range(2):
            running = [asyncio.create_task(generation.wait()) for generation in generations]
            if running:
                await asyncio.wait(running, timeout=timeout_s)
            for task in running:
                task.cancel()
            for generation in generations:
                generation.stop("cancelled", None)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except Exception as error:
            log.exception("vllm_engine_failed")
            with self._lock:
                self._closing = True
            self._on_status(False, f"the engine has failed: {type(error).__name__}: {error}")
            if not self._started.done():
                self._started.set_exception(error)
        finally:
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    async def _serve(self) -> None:
        self._changing = asyncio.Lock()
        async with open_session(self._api_key) as session:
            prompt = await asyncio.to_thread(self._tokenizer.encode, smoke_test.MESSAGES)
            self._replicas = ReplicaSet(
                session,
                self._urls,
                ExpectedBase(self._base.names, tuple(prompt), self._base.version, self._write_null_adapter),
                stall_s=self._stall_s,
                on_status=self._on_status,
                poll_s=self._poll_s,
            )
            tasks = {
                asyncio.create_task(self._replicas.run()),
                asyncio.create_task(self._announce_start()),
                asyncio.create_task(self._keep_house()),
            }
            await self._stopped.wait()
            # With these, what was begun for other threads, such as unloading.
            tasks |= asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _announce_start(self) -> None:
        try:
            await self._replicas.wait_until_ready()
        except Exception as error:  # noqa: BLE001 - the future carries it
            self._started.set_exception(error)
        else:
            self._started.set_result(None)

    # --- requests ---

    def supported_options(self) -> frozenset[str]:
        """Return all options that do not depend on the chat template. See `InferenceEngine.supported_options`."""
        return OPTION_NAMES - {"reasoning_effort"}

    async def submit(self, request: GenerationRequest, listener: GenerationListener) -> VllmGeneration:
        """Tokenize a request and send it to a server. See `InferenceEngine.submit`."""
        if needs_chat_api(request):
            await asyncio.to_thread(refuse_control_text, request, self._tokenizer.control_text)
            prompt = None
        else:
            prompt = await asyncio.to_thread(self._tokenizer.encode, request.messages)
        generation = self._admit(request, prompt, listener)
        try:
            await asyncio.wrap_future(generation.accepted)
            generation.release()
        except RuntimeError as error:
            raise shutting_down() from error
        except BaseException:
            generation.cancel()  # it was never released, so the listener is never called
            raise
        return generation

    def _admit(
        self, request: GenerationRequest, prompt: list[int] | None, listener: GenerationListener
    ) -> VllmGeneration:
        with self._lock:
            if self._closing:
                raise shutting_down()
            if not self._started.done():
                raise NotYet("no vLLM server is ready yet; send the request again in a moment")
            if request.version not in self._versions:
                raise not_loaded(request.version)
            limits = (self._tokenizer.max_context, self._replicas.max_model_len)
            max_context = min(limit for limit in limits if limit is not None)
            call = self._call(request, prompt, max_context)
            if self._waiting >= self._max_waiting:
                raise queue_full(self._max_waiting)
            generation = VllmGeneration(
                request,
                call,
                is_base=request.version == self._base.version,
                max_context=max_context,
                listener=listener,
                replicas=self._replicas,
                loop=self._loop,
                on_started=lambda _: self._count_waiting(-1),
                on_end=self._note_end,
            )
            self._requests[request.version] += 1
            self._waiting += 1
            self._generations.add(generation)
            # With the lock held, so that `stop` finds every admitted request started.
            self._loop.call_soon_threadsafe(generation.start)
            return generation

    def _call(self, request: GenerationRequest, prompt: list[int] | None, max_context: int) -> Call:
        """Return the HTTP call for a request. Without a prompt, the server builds it.

        Raises:
            ContextExceeded: if the prompt leaves no room for an answer.

        """
        stop = request.stop + self._tokenizer.stop_strings
        stop_token_ids = sorted(self._tokenizer.eos_token_ids)
        if prompt is None:
            return chat_call(
                request,
                max_tokens=request.max_tokens,
                stop=stop,
                stop_token_ids=stop_token_ids,
                template_kwargs=self._tokenizer.template_kwargs,
            )
        remaining = max_context - len(prompt)
        if remaining < 1:
            raise context_exceeded(len(prompt), max_context)
        return completion_call(
            request,
            prompt,
            max_tokens=min(request.max_tokens, remaining),
            stop=stop,
            stop_token_ids=stop_token_ids,
        )

    def _count_waiting(self, change: int) -> None:
        with self._lock:
            self._waiting += change

    def _note_end(self, generation: VllmGeneration) -> None:
        with self._lock:
            self._generations.discard(generation)
            self._requests[generation.request.version] -= 1
            if not generation.started:
                self._waiting -= 1
        self._request_ended.set()

    # --- versions ---

    def load(self, version: str, folder: Path) -> None:
        """Check, copy and load a version on all servers. See `InferenceEngine.load`."""
        if version in self.versions():
            return
        check_adapter(version, folder, self._base_shapes())
        try:
            self._in_loop(self._load(version, folder)).result()
        except CancelledError:
            raise shutting_down() from None

    def _base_shapes(self) -> dict[str, tuple[int, ...]]:
        if self._shapes is None:
            self._shapes = base_shapes(self._base.folder)
        return self._shapes

    def _write_null_adapter(self) -> Path | None:
        """Return the shared folder of an adapter that changes nothing, or None if the base has no layer for it."""
        with TemporaryDirectory() as folder:
            if not write_null_adapter(Path(folder), self._base_shapes()):
                log.warning("base_without_null_adapter", base=self._base.version)
                return None
            try:
                return self._adapters.add(self._base.version, Path(folder))
            except OSError as error:
                raise Retryable(self._not_writable(self._base.version, error)) from error

    def _not_writable(self, version: str, error: OSError) -> str:
        return (
            f"{version} cannot be copied to {self._adapters.root} (LOOPWRIGHT_INFERENCE_ADAPTER_DIR): {error}"
        )

    async def _load(self, version: str, folder: Path) -> None:
        async with self._changing:
            try:
                shared = await asyncio.to_thread(self._adapters.add, version, folder)
            except OSError as error:
                raise Retryable(self._not_writable(version, error)) from error
            try:
                await self._replicas.load(version, shared)
            except BaseException:
                if await asyncio.to_thread(self._adapters.release, shared):
                    await asyncio.to_thread(self._adapters.delete, shared)
                raise
            with self._lock:
                self._versions.append(version)

    def unload(self, version: str) -> None:
        """Unload a version from all servers after its last request. See `InferenceEngine.unload`."""
        with self._lock:
            if version == self._base.version or version not in self._versions:
                return
            self._versions.remove(version)
        self._in_loop(self._unload(version))

    async def _unload(self, version: str) -> None:
        """Wait for the version's requests, unload it, and only then delete its folder."""
        while self._requests[version] > 0:
            self._request_ended.clear()
            await self._request_ended.wait()
        async with self._changing:
            if version in self.versions():  # loaded again meanwhile
                return
            shared = self._replicas.wanted.get(version)
            if shared is not None:
                self._replicas.wanted.pop(version)
                if await asyncio.to_thread(self._adapters.release, shared):
                    await self._discard(version, shared)

    async def _discard(self, version: str, shared: Path) -> None:
        """Unload an adapter that nobody needs everywhere, then delete it. If a server is away, try again later."""
        if await self._replicas.unload(version, shared):
            await asyncio.to_thread(self._adapters.delete, shared)

    async def _keep_house(self) -> None:
        """Keep the holds of the served adapters fresh, and discard those that nobody needs any longer."""
        await self._replicas.wait_until_ready()
        while True:
            try:
                await asyncio.to_thread(self._adapters.refresh)
                async with self._changing:
                    for shared in await asyncio.to_thread(self._adapters.abandoned):
                        await self._discard(shared.name.rpartition(".")[0], shared)
            except Exception:  # the task must go on: without fresh holds, others delete the adapters
                log.exception("adapter_folder_unusable", folder=str(self._adapters.root))
            await asyncio.sleep(HOUSEKEEPING_S)

    def versions(self) -> tuple[str, ...]:
        """Return the versions that accept requests, the base first."""
        with self._lock:
            return tuple(self._versions)

    def _in_loop(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine in the engine's event loop."""
        with self._lock:
            if not self._closing:
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        refused: Future[T] = Future()
        refused.set_exception(Retryable("this replica is shutting down"))
        return refused
