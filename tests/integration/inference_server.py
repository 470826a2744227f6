"""Inference with a real model in this process, on a log in memory: what its integration tests talk to."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import uvicorn
from openai import OpenAI

from services.inference.api.routes import AppDependencies, create_app
from services.inference.engine.chat_tokenizer import ChatTokenizer
from services.inference.engine.lora_model import LoraModel
from services.inference.engine.transformers_engine import TransformersEngine
from services.inference.response_publisher import StrictResponsePublisher
from services.inference.settings import InferenceSettings
from services.inference.version_registry import VersionRegistry
from services.inference.version_swap import VersionSwap
from shared.adapters.artifacts_local import LocalArtifactStore
from shared.adapters.base_model import find_base
from shared.adapters.clock import SystemClock
from shared.adapters.in_memory import MemoryLog, MemoryPublisher
from shared.events import ChatResponse
from shared.pseudonym import Pseudonymiser
from shared.telemetry import Readiness
from tests.inference_factories import LINE


class Server:
    """Everything but Kafka. In float32, so that an answer does not depend on its company in the batch."""

    def __init__(self, model: Path, artifacts: Path) -> None:
        self.log = MemoryLog()
        self.base = find_base(str(model)).ref(LINE)
        self.prompts = ChatTokenizer(model, 4096)
        self.engine = TransformersEngine(
            lambda: LoraModel(model, self.prompts, device="cpu", dtype="float32"),
            self.prompts.decode,
            base=self.base.version,
        )
        self.serving = VersionRegistry(LINE, self.base, self.engine.unload)
        self.store = LocalArtifactStore(artifacts)
        self.takeover = VersionSwap(self.serving, self.store, self.engine, lambda _: None)
        readiness = Readiness("model")
        parts = AppDependencies(
            settings=InferenceSettings(line=LINE),
            serving=self.serving,
            engine=self.engine,
            prompts=self.prompts,
            recorder=StrictResponsePublisher(MemoryPublisher(self.log, "inference")),
            readiness=readiness,
            pseudonyms=Pseudonymiser(b"k" * 32),
            clock=SystemClock(),
            refusals=lambda: self.takeover.refusals,
        )
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        config = uvicorn.Config(
            create_app(parts), log_config=None, access_log=False, timeout_graceful_shutdown=5
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self.engine.start()
        self.engine.loaded.result(60)
        readiness.set("model", ok=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def client(self, **also: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", **({"max_retries": 0, "timeout": 60} | also))

    def records(self) -> dict[str, ChatResponse]:
        found = [ChatResponse.from_json(record.value) for record in self.log.records("chat.responses")]
        by_id = {record.response_id: record for record in found}
        assert len(by_id) == len(found), "a request has more than one record"
        return by_id

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)
        self.engine.stop(5)
        self.socket.close()
