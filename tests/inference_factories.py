"""Factories of the inference tests: versions, rollout records, requests, fakes, LoRA adapters."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from services.inference.core.generation_request import (
    GenerationRequest,
    GenerationResult,
    Piece,
)
from services.inference.engine.chat_tokenizer import ChatTokenizer
from services.inference.engine.generation_rows import ChoiceRow
from services.inference.engine.in_memory import InMemoryEngine
from services.inference.engine.port import Generation, GenerationListener, InferenceEngine
from services.inference.engine.vllm.addresses import parse_urls
from services.inference.engine.vllm.engine import VllmBase, VllmEngine
from shared.errors import BadArtifact
from shared.events import Message, sha256
from shared.versions import RolloutRecord, VersionRef, version_name

DECIDED_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LINE = "assistant"


def version_ref(line: str, number: int | None, digest: str | None = None, **overrides: Any) -> VersionRef:
    """Return a reference to version `number` of `line`, or to its base if that is None."""
    digest = digest or sha256(f"{line} {number}".encode())
    fields = {
        "version": version_name(line, number, digest),
        "kind": "base" if number is None else "lora",
        "uri": "" if number is None else f"artifact:{digest}",
        "digest": digest,
    } | overrides
    return VersionRef(**fields)


def rollout_record(seq: int, stable: VersionRef, *, line: str = LINE, **overrides: Any) -> RolloutRecord:
    """Return a rollout record that promotes `stable`."""
    fields: dict[str, Any] = {"line": line, "seq": seq, "action": "promote", "stable": stable}
    return RolloutRecord(**(fields | {"reason": "test", "decided_at": DECIDED_AT} | overrides))


BASE = version_ref(LINE, None)


def generation_request(
    response_id: str = "r1", version: str = BASE.version, prompt: str = "abc", **overrides: Any
) -> GenerationRequest:
    """Return a request with one user message."""
    messages = overrides.pop("messages", (Message(role="user", content=prompt),))
    return GenerationRequest(response_id, version, messages, **({"max_tokens": 100} | overrides))


def submit(engine: InferenceEngine, request: GenerationRequest, listener: GenerationListener) -> Generation:
    """Submit a request from a test that is not a coroutine."""
    return asyncio.run(engine.submit(request, listener))


def wait_until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not hold in time"
        time.sleep(0.01)


class RecordingListener:
    """Listener that keeps what it receives. `started` is set by the first piece, `ended` by the result."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.results: list[GenerationResult] = []
        self.started = threading.Event()
        self.ended = threading.Event()

    def on_piece(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self.started.set()

    def on_result(self, result: GenerationResult) -> None:
        self.results.append(result)
        self.ended.set()

    def result(self, timeout_s: float = 60) -> GenerationResult:
        """Wait for the result and return it."""
        assert self.ended.wait(timeout_s), "the request did not end in time"
        return self.results[0]


class FakeTokenizer:
    """Tokenizer whose tokens are the bytes of the text."""

    stop_strings: tuple[str, ...] = ()
    eos_token_ids = frozenset({0})
    template_kwargs: dict[str, Any] = {}  # noqa: RUF012 - never changed

    def __init__(self, max_context: int = 10_000) -> None:
        self.max_context = max_context

    def encode(self, messages: Sequence[Message]) -> list[int]:
        return list("".join(message.content for message in messages).encode())

    def control_text(self, text: str) -> str | None:
        return "<|im_end|>" if "<|im_end|>" in text else None

    def decode(self, tokens: list[int]) -> str:
        return bytes(tokens).decode("utf-8", "replace")


class FakeModels:
    """Versions in memory. A load takes steps without end while `may_load` is cleared."""

    def __init__(self) -> None:
        self.loaded = [BASE.version]
        self.unusable: set[str] = set()
        self.may_load = threading.Event()
        self.may_load.set()

    def load(self, version: str, folder: Path) -> Iterator[None]:
        if version in self.unusable:
            raise BadArtifact(f"{version} does not fit")
        yield
        while not self.may_load.is_set():
            yield
        if version not in self.loaded:
            self.loaded.append(version)

    def unload(self, version: str) -> None:
        self.loaded.remove(version)

    def versions(self) -> tuple[str, ...]:
        return tuple(self.loaded)


class FakeBatch:
    """Batch whose rows all answer `text` and an end-of-text token, one token in each step.

    While `gate` is set to an event, each step waits for it. While `failure` is set, each step fails its rows with it.
    Lengths are limited to `memory` tokens for all rows together.
    """

    def __init__(self, text: str = "hello", places: int = 8, memory: int = 100_000) -> None:
        self.text = text
        self.places = places
        self.max_length = memory
        self.steps: list[list[str]] = []
        self.failure: str | None = None
        self.gate: threading.Event | None = None
        self.entered = threading.Event()
        self._rows: list[ChoiceRow] = []

    @property
    def rows(self) -> tuple[ChoiceRow, ...]:
        return tuple(self._rows)

    def has_place(self, version: str) -> bool:
        return sum(row.version == version for row in self._rows) < self.places

    def has_memory(self, length: int) -> bool:
        return length <= self.max_length - sum(row.max_length for row in self._rows)

    def add(self, row: ChoiceRow) -> None:
        self._rows.append(row)

    def remove_ended(self) -> None:
        for row in self._rows:
            if row.generation.cancelled:
                row.cancel()
                row.generation.end_if_finished()
        self._rows = [row for row in self._rows if row.finish_reason is None and not row.generation.ended]

    def step(self) -> None:
        self.steps.append([row.generation.request.response_id for row in self._rows])
        self.entered.set()
        if self.gate is not None:
            assert self.gate.wait(20)
        for row in self._rows:
            if self.failure is not None:
                row.generation.end("failed", self.failure)
                continue
            row.push((self.text.encode() + b"\0")[row.token_count], frozenset({0}))
            row.generation.end_if_finished()


class HasUrl(Protocol):
    """A server of a test."""

    @property
    def url(self) -> str: ...


def make_vllm_engine(
    servers: Sequence[HasUrl], model: Path, adapter_dir: Path, *, urls: str = "", **options: Any
) -> VllmEngine:
    """Return a vLLM engine in front of these servers, not started. It checks them often."""
    return VllmEngine(
        parse_urls(urls or ",".join(server.url for server in servers)),
        VllmBase(BASE.version, (str(model),), model),
        options.pop("tokenizer", None) or FakeTokenizer(options.pop("max_context", 10_000)),
        adapter_dir=adapter_dir,
        **({"poll_s": 0.05} | options),
    )


class RecordingEngine(InMemoryEngine):
    """In-memory engine that keeps the history of its loads, with the names of the files, and of its unloads."""

    def __init__(self, base: str) -> None:
        super().__init__(base)
        self.loads: list[str] = []
        self.loaded_files: dict[str, set[str]] = {}
        self.unloads: list[str] = []

    def load(self, version: str, folder: Path) -> None:
        super().load(version, folder)
        self.loads.append(version)
        self.loaded_files[version] = {file.name for file in folder.iterdir()}

    def unload(self, version: str) -> None:
        super().unload(version)
        self.unloads.append(version)


def train_adapter(model: Path, folder: Path, answer: str, *, rank: int = 8, steps: int = 25) -> Path:
    """Train a LoRA adapter that answers every question with `answer`, far more likely than with anything else.

    Unlike those of random adapters, its answers do not depend on the last bits of a float.
    """
    import torch  # noqa: PLC0415 - most unit tests do without
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    tokenizer = ChatTokenizer(model, 4096)
    torch.manual_seed(7)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    adapter = get_peft_model(base, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
    optimizer = torch.optim.AdamW([p for p in adapter.parameters() if p.requires_grad], lr=2e-3)
    answer_ids = AutoTokenizer.from_pretrained(model).encode(answer, add_special_tokens=False)
    rows = []
    for question in ("abc", "Who are you?", "Say hello.", "word " * 8):
        prompt = tokenizer.encode([Message(role="user", content=question)])
        rows.append((prompt, prompt + answer_ids))
    for step in range(steps):
        prompt, row = rows[step % len(rows)]
        labels = [-100] * len(prompt) + row[len(prompt) :]
        adapter(input_ids=torch.tensor([row]), labels=torch.tensor([labels])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapter.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    return folder


def make_adapter(
    model: Path, folder: Path, seed: int, edit: Callable[[Any], None] | None = None, *, rank: int = 4
) -> Path:
    """Write a LoRA adapter of random weights, large enough to change the model's answers.

    `edit` may change the `PeftModel` before it is saved.
    """
    import torch  # noqa: PLC0415 - most unit tests do without
    from peft import LoraConfig, PeftModel  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(model)
    targets = ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]
    adapter = PeftModel(
        base, LoraConfig(r=rank, lora_alpha=16 * rank, target_modules=targets, task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, weight in adapter.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.5)
    if edit is not None:
        edit(adapter)
    adapter.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    return folder
