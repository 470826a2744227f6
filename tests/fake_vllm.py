"""A server that behaves like vLLM 0.32.0 for tests: models, runtime LoRA, completions. Each letter is a token.

Where it copies vLLM's behaviour: a restart forgets all adapters; a loaded name cannot be loaded again; unloading
only forgets the name, running requests go on; an evicted adapter is read from its folder again; errors have vLLM's
form; on CPUs, requests of the base may get the adapter in the last slot. `tests/vllm` runs the contract suite on the
real server as well.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web

from services.inference.core.detokenizer import IncrementalDetokenizer

T = TypeVar("T")
ALPHABET = "etaoin shrdlu"
NO_ADAPTER = "Loading lora {name} failed: No adapter found for {path}"


class FakeVllm:
    """One server on a port of its own, in a thread of its own. Tests change its attributes at any time.

    Attributes:
        calls: What it was asked to change or answer: `load NAME`, `unload NAME`, `complete NAME`, `forget` (a restart).
        adapters: Loaded adapters: name to (folder, digest of the weights).
        refuse_load: Why the next loads of a name fail: name to (status, message).
        broken: Models whose output is not finite.
        die_after: Number of streamed tokens after which the connection breaks, once.
        hides_adapters: Whether adapters are not listed, as by a server behind a load balancer.
        bodies, load_bodies: Bodies of requests for completions, and of loads.
        silent: Whether streams send nothing after their headers.
        queue_full: Whether completions are refused with status 503.
        error_after: Number of streamed tokens after which an error event follows, once.

    """

    def __init__(
        self,
        base: str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        max_model_len: int = 512,
        max_loras: int = 3,
        runtime_loading: bool = True,
        version: str = "0.32.0",
        on_cpu: bool = False,
        concurrency: int = 8,
        token_s: float = 0.001,
    ) -> None:
        self.base = base
        self.host, self.port = host, port
        self.max_model_len = max_model_len
        self.max_loras = max_loras
        self.runtime_loading = runtime_loading
        self.version = version
        self.on_cpu = on_cpu
        self.token_s = token_s
        self.load_s = 0.0
        self.calls: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.load_bodies: list[dict[str, Any]] = []
        self.hides_adapters = False
        self.adapters: dict[str, tuple[Path, str]] = {}
        self.refuse_load: dict[str, tuple[int, str]] = {}
        self.broken: set[str] = set()
        self.die_after: int | None = None
        self.error_after: int | None = None
        self.silent = False
        self.queue_full = False
        self.api_key: str | None = None
        self.running = 0
        self._slots = asyncio.Semaphore(concurrency)
        self._evicted: set[str] = set()
        self._runner: web.AppRunner | None = None
        self._connections: set[asyncio.Transport] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fake-vllm", daemon=True)
        self._thread.start()
        self.start()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    # --- control ---

    def start(self) -> None:
        """Listen, on the same port as before."""
        self._call(self._start())

    def kill(self) -> None:
        """Break all connections and stop listening. Adapters are forgotten, as by a process that ended."""
        self._call(self._kill())

    def restart(self) -> None:
        """Forget all adapters, without anyone noticing at once."""
        self.calls.append("forget")
        self.adapters.clear()

    def evict(self, name: str) -> None:
        """Drop an adapter's weights from memory; the next request reads its folder again."""
        self._evicted.add(name)

    def close(self) -> None:
        """Stop the thread."""
        self._call(self._kill())
        self._call(self._cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _start(self) -> None:
        app = web.Application(middlewares=[self._authorize])
        app.router.add_get("/health", self._health)
        app.router.add_get("/version", self._version)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_post("/tokenize", self._tokenize)
        if self.runtime_loading:
            app.router.add_post("/v1/load_lora_adapter", self._load)
            app.router.add_post("/v1/unload_lora_adapter", self._unload)
        self._runner = web.AppRunner(app, shutdown_timeout=0.05, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port, reuse_address=True)
        await site.start()
        server: Any = site._server
        self.port = server.sockets[0].getsockname()[1]

    async def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _kill(self) -> None:
        self.adapters.clear()
        self._evicted.clear()
        for transport in list(self._connections):
            transport.abort()
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    # --- routes ---

    @web.middleware
    async def _authorize(
        self, request: web.Request, handler: Callable[[web.Request], Any]
    ) -> web.StreamResponse:
        if isinstance(request.transport, asyncio.Transport):
            self._connections.add(request.transport)
        is_open = not self.api_key or not request.path.startswith("/v1")  # as in vLLM
        if not is_open and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        response: web.StreamResponse = await handler(request)
        return response

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": self.version})

    async def _metrics(self, _: web.Request) -> web.Response:
        labels = f'max_lora="{self.max_loras}",running_lora_adapters="",waiting_lora_adapters=""'
        block, ssm = ("128", "float32") if self.on_cpu else ("16", "auto")
        cache = f'block_size="{block}",mamba_ssm_cache_dtype="{ssm}",user_specified_block_size="False"'
        text = f"vllm:cache_config_info{{{cache}}} 1.0\nvllm:lora_requests_info{{{labels}}} 1.0\n"
        return web.Response(text=text)

    async def _models(self, _: web.Request) -> web.Response:
        base = {"id": self.base, "object": "model", "root": self.base, "parent": None}
        adapters = [
            {"id": name, "object": "model", "root": str(path), "parent": self.base, "max_model_len": None}
            for name, (path, _) in self.adapters.items()
            if not self.hides_adapters
        ]
        models = [base | {"max_model_len": self.max_model_len}, *adapters]
        return web.json_response({"object": "list", "data": models})

    async def _load(self, request: web.Request) -> web.Response:
        body = await request.json()
        name, path = body["lora_name"], body["lora_path"]
        if not name or not path:
            return _error(400, "Both 'lora_name' and 'lora_path' must be provided.")
        self.calls.append(f"load {name}")
        self.load_bodies.append(body)
        if name in self.adapters and not body.get("load_inplace"):
            return _error(400, f"The lora adapter '{name}' has already been loaded.")
        await asyncio.sleep(self.load_s)
        if name in self.refuse_load:
            return _error(*self.refuse_load[name])
        try:
            self.adapters[name] = (Path(path), _digest(Path(path)))
        except OSError:
            return _error(404, NO_ADAPTER.format(name=name, path=path))
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        self.calls.append(f"unload {name}")
        if self.adapters.pop(name, None) is None:
            return _error(404, f"The lora adapter '{name}' cannot be found.")
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def _tokenize(self, request: web.Request) -> web.Response:
        tokens = _chat_tokens(await request.json())
        return web.json_response({"count": len(tokens), "tokens": tokens})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        model = body["model"]
        if "messages" in body:
            body |= {"prompt": _chat_tokens(body), "max_tokens": body["max_completion_tokens"]}
        self.calls.append(f"complete {model}")
        self.bodies.append(body)
        if body.get("logit_bias", {}).keys() & {"999999999"}:
            return _error(400, "logit_bias has a token that is not in the vocabulary", "logit_bias")
        if self.queue_full:
            return _error(503, "The number of queued requests exceeds the limit.")
        if model != self.base and model not in self.adapters:
            return _error(404, f"The model `{model}` does not exist.")
        if len(body["prompt"]) + 1 > self.max_model_len:
            return _error(400, f"This model's maximum context length is {self.max_model_len} tokens.")
        if model in self.broken:
            return _error(500, "Out of range float values are not JSON compliant")
        identity = "base" if model == self.base else self.adapters[model][1]
        if model == self.base and self.on_cpu and self.adapters:  # vLLM pull request 49656
            identity = list(self.adapters.values())[-1][1]
        if model in self._evicted:
            self._evicted.discard(model)
            try:
                identity = _digest(self.adapters[model][0])
            except OSError as error:
                return _error(500, f"EngineCore encountered an issue: {error}")
        self.running += 1
        try:
            if not body.get("stream"):
                async with self._slots:
                    return web.json_response(_whole_answer(body, identity))
            return await self._stream(request, body, identity)
        finally:
            self.running -= 1

    async def _stream(self, request: web.Request, body: dict[str, Any], identity: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        assert request.transport is not None
        sent = 0
        try:
            await response.write(b": keep-alive\n\n")
            if self.silent:
                await asyncio.sleep(60)
            async with self._slots:
                async for event in _events(body, identity, self.token_s):
                    if self.die_after is not None and sent >= self.die_after:
                        self.die_after = None
                        request.transport.abort()  # type: ignore[attr-defined]
                        return response
                    if self.error_after is not None and sent >= self.error_after:
                        self.error_after = None
                        await response.write(_event({"error": {"message": "engine died", "code": 500}}))
                        break
                    await response.write(_event(event))
                    sent += 1
            await response.write(b"data: [DONE]\n\n")
        except ConnectionError:
            self.calls.append(f"abort {body['model']}")
        return response


async def _events(body: dict[str, Any], identity: str, token_s: float) -> AsyncIterator[dict[str, Any]]:
    """Yield the events of a stream, the choices token by token in turn."""
    common = {"id": "cmpl-1", "object": "text_completion", "model": body["model"]}
    choices = [_Choice(body, identity, index) for index in range(body["n"])]
    prompt_tokens = len(body["prompt"])
    while not all(choice.finish_reason for choice in choices):
        await asyncio.sleep(token_s)
        for choice in choices:
            if choice.finish_reason is None:
                yield common | {
                    "choices": [choice.next_delta()],
                    "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": choice.tokens},
                }
    total = sum(choice.tokens for choice in choices)
    yield common | {"choices": [], "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": total}}


class _Choice:
    """Letters that depend on weights and prompt, and on the seed if the request is sampled."""

    def __init__(self, body: dict[str, Any], identity: str, index: int) -> None:
        self.index = index
        self.tokens = 0
        self.finish_reason: str | None = None
        self._body = body
        self._max_tokens = body["max_tokens"]
        sampled = body["temperature"] > 0 and body.get("top_k") != 1
        seed = body.get("seed") if sampled else 0
        parts = [identity, body["prompt"], seed, index if sampled else 0]
        self._letters = random.Random(None if seed is None else json.dumps(parts))
        self._detokenizer = IncrementalDetokenizer(
            lambda tokens: "".join(map(chr, tokens)), body.get("stop", [])
        )

    def next(self) -> str:
        self.tokens += 1
        text = self._detokenizer.push(ord(self._letters.choice(ALPHABET)))
        if self._detokenizer.stopped:
            self.finish_reason = "stop"
        elif self.tokens >= self._max_tokens:
            self.finish_reason = "length"
        return text + (self._detokenizer.flush() if self.finish_reason else "")

    def next_delta(self) -> dict[str, Any]:
        """Return the next token's part of an event, in the form of the API that was called."""
        delta: dict[str, Any] = {"index": self.index, "logprobs": None}
        if self._body.get("tool_choice") not in {None, "none", "auto"} and "messages" in self._body:
            return delta | self._next_of_tool_call()
        text = self.next()
        if "messages" in self._body:
            return delta | {"delta": {"content": text}, "finish_reason": self.finish_reason}
        if self._body.get("logprobs") is not None:
            delta["logprobs"] = {
                "tokens": [text],
                "token_logprobs": [-2.5],
                "top_logprobs": [{text: -2.5, "?": -0.5, "\ufffd": -1.5}],
            }
        return delta | {"text": text, "finish_reason": self.finish_reason}

    def _next_of_tool_call(self) -> dict[str, Any]:
        """Return the parts of a call of the first tool."""
        self.tokens += 1
        name = self._body["tools"][0]["function"]["name"]
        parts: list[dict[str, Any]] = [
            {"index": 0, "id": "call-1", "type": "function", "function": {"name": name, "arguments": ""}},
            {"index": 0, "function": {"arguments": '{"city":'}},
            {"index": 0, "function": {"arguments": '"Rome"}'}},
        ]
        self.finish_reason = "stop" if self.tokens == len(parts) else None  # as vLLM does for forced calls
        return {"delta": {"tool_calls": [parts[self.tokens - 1]]}, "finish_reason": self.finish_reason}


def _chat_tokens(body: dict[str, Any]) -> list[int]:
    return list(json.dumps([body["messages"], body.get("tools")]).encode())


def _whole_answer(body: dict[str, Any], identity: str) -> dict[str, Any]:
    choice = _Choice(body, identity, 0)
    text = ""
    while choice.finish_reason is None:
        text += choice.next()
    logprobs = {"token_logprobs": [-0.5] * choice.tokens}
    return {
        "model": body["model"],
        "choices": [{"index": 0, "text": text, "finish_reason": choice.finish_reason, "logprobs": logprobs}],
        "usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": choice.tokens},
    }


def _digest(folder: Path) -> str:
    if json.loads((folder / "adapter_config.json").read_bytes())["r"] == 1:
        return "base"  # the null adapter; all others of the tests have a higher rank
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _error(status: int, message: str, param: str | None = None) -> web.Response:
    error = {"message": message, "type": "Error", "param": param, "code": status}
    return web.json_response({"error": error}, status=status)
