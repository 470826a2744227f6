"""What tests of inference share: records, a model that is none, adapters that are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.inference.core.generation_request import (
    GenerationRequest,
    GenerationResult,
    Piece,
    BatchRow,
    Sampling,
)
from shared.errors import BadArtifact
from shared.events import sha256
from shared.versions import RolloutRecord, VersionRef, version_name

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LINE = "assistant"


def reference(line: str, number: int | None, digest: str | None = None, **also: Any) -> VersionRef:
    digest = digest or sha256(f"{line} {number}".encode())
    kind = "base" if number is None else "lora"
    uri = "" if number is None else f"artifact:{digest}"
    fields = {
        "version": version_name(line, number, digest),
        "kind": kind,
        "uri": uri,
        "digest": digest,
    } | also
    return VersionRef(**fields)


def rollout(seq: int, stable: VersionRef, *, line: str = LINE, **also: Any) -> RolloutRecord:
    fields: dict[str, Any] = {"line": line, "seq": seq, "action": "promote", "stable": stable}
    return RolloutRecord(**(fields | {"reason": "a test says so", "decided_at": AT} | also))


BASE = reference(LINE, None)


class FakeComputer:
    """Answers each row with the text of its version, a character a token, until `tokens` are made.

    Holds every batch at `gate` where one is set, and fails while `failure` is set.
    """

    def __init__(self, text: str = "hello") -> None:
        self.text = text
        self.batches: list[tuple[str | None, list[str]]] = []
        self.loaded: set[str] = set()
        self.refuses: set[str] = set()
        self.failure: Exception | None = None
        self.gate: threading.Event | None = None
        self.entered = threading.Event()

    def load(self, version: str, folder: Path) -> None:
        if version in self.refuses:
            raise BadArtifact(f"{version} does not fit")
        self.loaded.add(version)

    def unload(self, version: str) -> None:
        self.loaded.discard(version)

    def smoke(self, version: str | None) -> None:
        """It never smokes."""

    def warm(self, version: str | None) -> None:
        """It is always warm."""

    def generate(self, version: str | None, rows: Sequence[BatchRow], sampling: Sampling) -> None:
        self.batches.append((version, [row.ask.response_id for row in rows]))
        self.entered.set()
        if self.gate is not None:
            assert self.gate.wait(20)
        if self.failure is not None:
            raise self.failure
        for token in self.text.encode():
            for row in rows:
                row.take(token, frozenset())
        for row in rows:
            row.take(0, frozenset({0}))
            row.ask.end_if_done()


def decode(tokens: list[int]) -> str:
    return bytes(tokens).decode("utf-8", "replace")


class Heard:
    """What one ask was told."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.ends: list[GenerationResult] = []
        self.done = threading.Event()

    def end(self, ask: GenerationRequest, end: GenerationResult) -> None:
        self.ends.append(end)
        self.done.set()

    def ask(self, name: str, version: str = BASE.version, **also: Any) -> GenerationRequest:
        fields: dict[str, Any] = {"max_tokens": 100, "prompt": [1, 2, 3]} | also
        return GenerationRequest(
            response_id=name, version=version, on_piece=self.pieces.append, on_end=self.end, **fields
        )


def make_adapter(model: Path, folder: Path, seed: int, edit: Callable[[Any], None] | None = None) -> Path:
    """A LoRA adapter of random weights that do change what the model says."""
    import torch  # noqa: PLC0415 - unit tests do without
    from peft import LoraConfig, PeftModel  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(model)
    targets = ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]
    adapter = PeftModel(base, LoraConfig(r=4, lora_alpha=64, target_modules=targets, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, weight in adapter.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.5)
    if edit is not None:
        edit(adapter)
    adapter.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    return folder
