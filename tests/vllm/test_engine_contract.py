"""The contract of `InferenceEngine` over a real vLLM server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from services.inference.core.generation_options import GenerationOptions
from services.inference.core.generation_request import GenerationResult
from services.inference.engine.chat_tokenizer import ChatTokenizer
from services.inference.engine.port import InferenceEngine
from tests.contract.test_inference_engine_contract import *  # noqa: F403 - collects the suite's tests
from tests.contract.test_inference_engine_contract import MAX_CONTEXT, MAX_WAITING, Setup
from tests.inference_factories import RecordingListener, make_vllm_engine
from tests.vllm.conftest import MAX_MODEL_LEN, QUESTION, RealVllm


class RealSetup(Setup):
    """Asks what has one likely answer, and lets sampled answers go on until their limit, as a tiny model's do."""

    def submit(self, **fields: Any) -> RecordingListener:
        if "sampling" in fields:
            fields = {"options": GenerationOptions(ignore_eos=True)} | fields
        else:
            fields = {"prompt": QUESTION} | fields
        return super().submit(**fields)

    def answer(self, **fields: Any) -> GenerationResult:
        return self.submit(**fields).result(300)  # a model of 135 million parameters on half a core


pytestmark = pytest.mark.timeout(1200)
assert MAX_MODEL_LEN == MAX_CONTEXT


@pytest.fixture(scope="module")
def adapters(trained_adapters: dict[str, Path]) -> dict[str, Path]:
    return trained_adapters


@pytest.fixture(scope="module")
def setup(vllm: RealVllm, base_model: Path, adapters: dict[str, Path]) -> Iterator[Setup]:
    with ExitStack() as cleanup:
        adapter_dir = Path(cleanup.enter_context(TemporaryDirectory()))

        def start() -> InferenceEngine:
            engine = make_vllm_engine(
                [vllm],
                base_model,
                adapter_dir,
                max_waiting=MAX_WAITING,
                tokenizer=ChatTokenizer(base_model, MAX_CONTEXT),
                poll_s=1.0,
            )
            cleanup.callback(engine.stop, 10)
            engine.start().result(120)
            return engine

        yield RealSetup(start(), adapters, start)
