"""Inference with a real model, in this process and on the in-memory log, for integration tests over HTTP."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import uvicorn
from openai import OpenAI

from services.inference.api.chat_handler import ChatHandler
from services.inference.api.routes import create_app
from services.inference.engine.chat_tokenizer import ChatTokenizer
from services.inference.engine.open_model import open_model
from services.inference.engine.transformers_engine import TransformersEngine
from services.inference.response_publisher import StrictResponsePublisher
from services.inference.settings import InferenceSettings
from services.inference.version_registry import VersionRegistry
from services.inference.version_swap import VersionSwap
from shared.adapters.artifacts_local import LocalArtifactStore
from shared.adapters.base_model import find_base
from shared.adapters.clock import SystemClock
from shared.adapters.in_memory import InMemoryLog, InMemoryPublisher
from shared.events import ChatResponse
from shared.pseudonym import Pseudonymiser
from shared.telemetry import Readiness
from tests.inference_factories import LINE


class InferenceServer:
    """The whole service without Kafka, in float32, so that an answer does not depend on the rest of its batch."""

    def __init__(self, model: Path, artifacts: Path) -> None:
        self.log = InMemoryLog()
        self.model = model
        self.base = find_base(str(model)).ref(LINE)
        tokenizer = ChatTokenizer(model, 4096)
        self.engine = TransformersEngine(
            lambda: open_model(
                model, tokenizer, base=self.base.version, device="cpu", dtype="float32", kv_cache_mb=64
            ),
            tokenizer,
            base=self.base.version,
        )
        self.registry = VersionRegistry(LINE, self.base, self.engine.unload)
        self.store = LocalArtifactStore(artifacts)
        self.swap = VersionSwap(self.registry, self.store, self.engine, lambda _: None)
        readiness = Readiness("model")
        chats = ChatHandler(
            settings=InferenceSettings(line=LINE),
            registry=self.registry,
            engine=self.engine,
            publisher=StrictResponsePublisher(InMemoryPublisher(self.log, "inference")),
            readiness=readiness,
            pseudonyms=Pseudonymiser(b"k" * 32),
            clock=SystemClock(),
        )
        app = create_app(chats, self.registry, readiness, lambda: self.swap.refusals)
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self.engine.start().result(60)
        readiness.set("model", ok=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def client(self, **options: Any) -> OpenAI:
        return OpenAI(
            base_url=f"{self.url}/v1", api_key="none", **({"max_retries": 0, "timeout": 60} | options)
        )

    def records(self) -> dict[str, ChatResponse]:
        """Return the response records by response id."""
        records = [ChatResponse.from_json(record.value) for record in self.log.records("chat.responses")]
        by_id = {record.response_id: record for record in records}
        assert len(by_id) == len(records), "a request has more than one record"
        return by_id

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)
        self.engine.stop(5)
        self.socket.close()
