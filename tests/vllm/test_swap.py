"""Swaps on a real vLLM server: nothing fails, nothing mixes, a restart is noticed, text equals transformers'."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.inference.core.generation_options import GenerationOptions
from services.inference.core.generation_request import (
    GenerationRequest,
    GenerationResult,
    InvalidParameter,
    Sampling,
)
from services.inference.engine.chat_tokenizer import ChatTokenizer
from services.inference.engine.port import InferenceEngine
from shared.errors import LoopwrightError, Retryable
from tests.inference_factories import (
    BASE,
    LINE,
    RecordingListener,
    generation_request,
    make_adapter,
    make_vllm_engine,
    submit,
    version_ref,
    wait_until,
)
from tests.vllm.conftest import ANSWERS, MAX_LORA_RANK, MAX_MODEL_LEN, QUESTION, RealVllm

pytestmark = pytest.mark.timeout(1200)
V1, V2, V3 = (version_ref(LINE, number).version for number in (1, 2, 3))
REQUESTS = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def engine(vllm: RealVllm, base_model: Path, folder: Path) -> Iterator[InferenceEngine]:
    engine = make_vllm_engine(
        [vllm], base_model, folder, tokenizer=ChatTokenizer(base_model, MAX_MODEL_LEN), poll_s=0.5
    )
    engine.start().result(120)
    yield engine
    for version in engine.versions()[1:]:
        engine.unload(version)
    wait_until(lambda: {path.name.partition(".")[0] for path in folder.iterdir()} <= {"", BASE.version}, 60)
    engine.stop(10)


def ask(engine: InferenceEngine, **fields: Any) -> RecordingListener:
    listener = RecordingListener()
    submit(engine, generation_request(**({"max_tokens": 12, "prompt": QUESTION} | fields)), listener)
    return listener


def answer(engine: InferenceEngine, **fields: Any) -> GenerationResult:
    result = ask(engine, **fields).result(120)
    assert result.status == "completed", result.error
    return result


def text(engine: InferenceEngine, version: str, **fields: Any) -> str:
    return answer(engine, version=version, **fields).choices[0].text


def test_versions_say_what_they_were_trained_to_say(
    engine: InferenceEngine, trained_adapters: dict[str, Path]
) -> None:
    """Prompts are those of the training, and the adapters are applied as peft applies them."""
    for version, trained in zip((V1, V2), ANSWERS, strict=True):
        engine.load(version, trained_adapters[version])
        assert trained.startswith(text(engine, version, prompt="Who are you?", max_tokens=8).strip())


def test_twenty_swaps_under_load_fail_and_mix_nothing(
    engine: InferenceEngine, trained_adapters: dict[str, Path]
) -> None:
    """I8, I9: like the gateway, the test drains a version before it unloads it."""
    expected: dict[str, str] = {}
    for version in (V1, V2):
        engine.load(version, trained_adapters[version])
        expected[version] = text(engine, version)
    expected[BASE.version] = text(engine, BASE.version)
    assert len(set(expected.values())) == 3

    async def run() -> list[tuple[str, GenerationResult]]:
        stable, other = V1, V2
        results: list[tuple[str, GenerationResult]] = []
        in_flight: set[asyncio.Task[None]] = set()

        async def one(version: str) -> None:
            listener = RecordingListener()
            request = generation_request(version=version, max_tokens=12, prompt=QUESTION)
            await engine.submit(request, listener)
            await asyncio.to_thread(listener.ended.wait, 120)
            results.append((version, listener.results[0]))

        for _ in range(20):
            drained, in_flight = in_flight, set()
            for number in range(REQUESTS // 20):
                version = BASE.version if number % 5 == 4 else stable
                in_flight.add(asyncio.create_task(one(version)))
            await asyncio.sleep(0.05)
            if drained:
                await asyncio.wait(drained)
            await asyncio.to_thread(engine.unload, other)
            await asyncio.to_thread(engine.load, other, trained_adapters[other])
            stable, other = other, stable
        await asyncio.wait(in_flight)
        return results

    results = asyncio.run(run())
    assert len(results) == REQUESTS
    assert [result.error for _, result in results if result.status != "completed"] == []
    mixed = [
        (version, result.choices[0].text)
        for version, result in results
        if result.choices[0].text != expected[version]
    ]
    assert mixed == []


def test_more_versions_than_slots_stay_apart(
    engine: InferenceEngine, trained_adapters: dict[str, Path], base_model: Path, tmp_path: Path
) -> None:
    """vLLM reads evicted adapters from their folders again."""
    engine.load(V1, trained_adapters[V1])
    engine.load(V2, trained_adapters[V2])
    expected = {version: text(engine, version) for version in (V1, V2, BASE.version)}
    others = [f"{LINE}@v{number}-00000000" for number in (7, 8, 9)]
    for number, other in enumerate(others):
        engine.load(other, make_adapter(base_model, tmp_path / other, 10 + number))
        assert ask(engine, version=other).result(120).status == "completed"
    assert {version: text(engine, version) for version in expected} == expected


def test_rank_above_the_limit_is_refused_with_the_remedy(
    engine: InferenceEngine, base_model: Path, tmp_path: Path
) -> None:
    folder = make_adapter(base_model, tmp_path / "v3", 3, rank=MAX_LORA_RANK * 2)
    with pytest.raises(Retryable, match="--max-lora-rank"):
        engine.load(V3, folder)
    assert engine.versions() == (BASE.version,)
    assert text(engine, BASE.version)


def test_options_of_openai_and_vllm_work(engine: InferenceEngine) -> None:
    def options(**values: Any) -> GenerationOptions:
        return GenerationOptions.model_validate(values, strict=False)

    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    formats = options(response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}})
    assert '"n"' in text(engine, BASE.version, options=formats, max_tokens=40)
    assert text(engine, BASE.version, options=options(structured_outputs={"regex": "(yes|no)"})) in {
        "yes",
        "no",
    }
    [choice] = answer(engine, options=options(logprobs=True, top_logprobs=3)).choices
    assert "".join(each.token for each in choice.logprobs).startswith(choice.text)
    assert all(len(each.top) == 3 and each.logprob <= 0 for each in choice.logprobs)
    assert all(each.token == each.top[0].token for each in choice.logprobs)  # greedy
    result = answer(engine, n=2, sampling=Sampling(0.0))
    assert result.choices[0].text == result.choices[1].text
    with pytest.raises(InvalidParameter) as error:
        ask(engine, options=options(logit_bias={"99999999": 5.0}))
    assert error.value.param
    tools = [{"type": "function", "function": {"name": "weather", "parameters": schema}}]
    called = answer(engine, options=options(tools=tools, tool_choice="required"), max_tokens=200)
    assert called.choices[0].finish_reason in {"tool_calls", "length"}
    assert called.choices[0].tool_calls[0].name == "weather"
    assert called.usage.prompt_tokens > 10


def test_killed_server_loses_nothing_but_the_running_answers(
    vllm: RealVllm, engine: InferenceEngine, trained_adapters: dict[str, Path]
) -> None:
    """I12: after the restart it has every version before it gets a request."""
    engine.load(V1, trained_adapters[V1])
    engine.load(V2, trained_adapters[V2])
    expected = {version: text(engine, version) for version in (BASE.version, V1, V2)}
    running = ask(engine, version=V1, max_tokens=400, sampling=Sampling(2.0, 1.0, 1))
    assert running.started.wait(60)
    vllm.kill()
    result = running.result(60)
    assert (result.status, result.error) == (
        "failed",
        "the vLLM server broke off before the answer was complete",
    )
    request: GenerationRequest = generation_request(version=V1)
    with pytest.raises(LoopwrightError) as error:
        submit(engine, request, RecordingListener())
    assert isinstance(error.value, Retryable)
    vllm.start()
    wait_until(lambda: is_back(engine), 120)
    assert {version: text(engine, version) for version in expected} == expected


def is_back(engine: InferenceEngine) -> bool:
    try:
        return ask(engine, max_tokens=1).result(60).status == "completed"
    except Retryable:
        return False
