"""The HTTP application of inference on the in-memory engine and the in-memory log."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import uvicorn

from services.inference.api.chat_handler import ChatHandler
from services.inference.api.routes import create_app
from services.inference.core.generation_request import FunctionCall, GenerationRequest
from services.inference.engine.in_memory import InMemoryEngine, forced_call
from services.inference.response_publisher import ResponsePublisher, StrictResponsePublisher
from services.inference.settings import InferenceSettings
from services.inference.version_registry import VersionRegistry
from services.inference.version_swap import Refusal
from shared.adapters.clock import ManualClock
from shared.adapters.in_memory import InMemoryLog, InMemoryPublisher
from shared.events import ChatResponse
from shared.pseudonym import Pseudonymiser
from shared.telemetry import Readiness
from tests.inference_factories import BASE, LINE

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
BODY: dict[str, Any] = {
    "model": LINE,
    "messages": [{"role": "user", "content": "hi"}],
    "temperature": 0,
}


class App:
    """The HTTP application on the in-memory engine, which answers "hello", and the in-memory log."""

    def __init__(
        self,
        max_context: int = 100,
        publisher: ResponsePublisher | None = None,
        answer: Callable[[GenerationRequest, int], str] = lambda request, choice: "hello",
        calls: Callable[[GenerationRequest, int], tuple[FunctionCall, ...]] = forced_call,
        seconds_per_token: float = 0.0,
        engine: InMemoryEngine | None = None,
    ) -> None:
        self.log = InMemoryLog()
        self.publisher = InMemoryPublisher(self.log, "inference")
        self.engine = engine or InMemoryEngine(
            BASE.version,
            answer=answer,
            calls=calls,
            max_waiting=1,
            max_context=max_context,
            seconds_per_token=seconds_per_token,
        )
        self.registry = VersionRegistry(LINE, BASE, self.engine.unload)
        self.readiness = Readiness("model")
        self.readiness.set("model", ok=True)
        self.refusals: tuple[Refusal, ...] = ()
        chats = ChatHandler(
            settings=InferenceSettings(line=LINE),
            registry=self.registry,
            engine=self.engine,
            publisher=publisher or StrictResponsePublisher(self.publisher),
            readiness=self.readiness,
            pseudonyms=Pseudonymiser(b"k" * 32),
            clock=ManualClock(),
        )
        self.app = create_app(chats, self.registry, self.readiness, lambda: self.refusals)
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://inference")

    async def chat(self, **fields: Any) -> httpx.Response:
        return await self.http.post(CHAT, json=BODY | fields)

    def records(self) -> list[ChatResponse]:
        return [ChatResponse.from_json(record.value) for record in self.log.records("chat.responses")]


def chunks_of(answer: httpx.Response) -> list[dict[str, Any]]:
    """Return the chunk objects of a stream, without `[DONE]`."""
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@asynccontextmanager
async def running(app: App) -> AsyncIterator[App]:
    """Start the application's engine, and stop it afterwards."""
    app.engine.start()
    try:
        yield app
    finally:
        app.engine.resume.set()
        await app.http.aclose()
        await asyncio.to_thread(app.engine.stop, 5)


@contextmanager
def served(app: App) -> Iterator[str]:
    """Serve the application on a port of this machine, and return its URL."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    server = uvicorn.Server(
        uvicorn.Config(app.app, log_config=None, access_log=False, timeout_graceful_shutdown=5)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    app.engine.start()
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        app.engine.resume.set()
        app.engine.stop(5)
        listener.close()


WEATHER = FunctionCall("call_1", "get_weather", '{"city": "Oslo"}')


def weather_calls(request: GenerationRequest, choice: int) -> tuple[FunctionCall, ...]:
    """Call `get_weather` if the request has that tool, unless the conversation ends with a tool's result."""
    names = [tool.function.name for tool in request.options.tools or ()]
    return (WEATHER,) if WEATHER.name in names and request.messages[-1].role != "tool" else ()


def weather_answer(request: GenerationRequest, choice: int) -> str:
    """Return JSON if the request wants it, nothing before a tool call, the tool's result after it, or a greeting."""
    if request.options.response_format is not None:
        return '{"city": "Oslo", "degrees": 7}'
    if weather_calls(request, choice):
        return ""
    last = request.messages[-1]
    return f"It is {last.content}." if last.role == "tool" else "hello"
