"""Contract of `InferenceEngine`, over each implementation: a new one joins by one entry in `ENGINES`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import pytest

from services.inference.core.generation_options import (
    OPTION_NAMES,
    FunctionDefinition,
    GenerationOptions,
    ToolDefinition,
)
from services.inference.core.generation_request import (
    ContextExceeded,
    GenerationResult,
    Sampling,
    join_tool_calls,
)
from services.inference.engine.chat_tokenizer import ChatTokenizer
from services.inference.engine.in_memory import InMemoryEngine
from services.inference.engine.open_model import open_model
from services.inference.engine.port import InferenceEngine
from services.inference.engine.transformers_engine import TransformersEngine
from shared.errors import BadArtifact, Overloaded, Retryable, UnknownVersion
from tests.fake_vllm import FakeVllm
from tests.inference_factories import (
    BASE,
    RecordingListener,
    generation_request,
    make_adapter,
    make_vllm_engine,
    submit,
    version_ref,
)

V1, V2 = version_ref("assistant", 1).version, version_ref("assistant", 2).version
MAX_WAITING = 4
MAX_CONTEXT = 512
LONG = MAX_CONTEXT
"""More tokens than a test is willing to wait for."""
SAMPLED = Sampling(temperature=2.0, seed=5)
"""At this temperature the tiny model's answers are varied text."""


class EngineFactory(Protocol):
    """Creates an engine, not started, with queue limit `MAX_WAITING` and context limit `MAX_CONTEXT`.

    What it needs besides is cleaned up by the exit stack, after the engine was stopped.
    """

    def __call__(self, model: Path, cleanup: ExitStack) -> InferenceEngine: ...


def in_memory_engine(model: Path, cleanup: ExitStack) -> InferenceEngine:
    return InMemoryEngine(
        BASE.version, max_waiting=MAX_WAITING, max_context=MAX_CONTEXT, seconds_per_token=0.001
    )


def transformers_engine(model: Path, cleanup: ExitStack) -> InferenceEngine:
    tokenizer = ChatTokenizer(model, MAX_CONTEXT)
    # In float32, because in bfloat16 an answer depends on the other rows of its batch.
    return TransformersEngine(
        lambda: open_model(
            model,
            tokenizer,
            base=BASE.version,
            device="cpu",
            dtype="float32",
            max_batch=8,
            kv_cache_mb=64,
        ),
        tokenizer,
        base=BASE.version,
        max_waiting=MAX_WAITING,
    )


def vllm_engine(model: Path, cleanup: ExitStack) -> InferenceEngine:
    """The engine in front of two servers that behave like vLLM."""
    servers = [FakeVllm(str(model), max_model_len=MAX_CONTEXT) for _ in range(2)]
    for server in servers:
        cleanup.callback(server.close)
    return make_vllm_engine(
        servers,
        model,
        Path(cleanup.enter_context(TemporaryDirectory())),
        max_waiting=MAX_WAITING,
        tokenizer=ChatTokenizer(model, MAX_CONTEXT),
    )


ENGINES: dict[str, EngineFactory] = {
    "in_memory": in_memory_engine,
    "transformers": transformers_engine,
    "vllm": vllm_engine,
}


@dataclass(frozen=True)
class Setup:
    """A started engine, and adapter folders that it can load."""

    engine: InferenceEngine
    adapters: dict[str, Path]
    start_another: Callable[[], InferenceEngine]

    def submit(self, **fields: Any) -> RecordingListener:
        listener = RecordingListener()
        submit(self.engine, generation_request(**fields), listener)
        return listener

    def answer(self, **fields: Any) -> GenerationResult:
        return self.submit(**fields).result()

    def text(self, **fields: Any) -> str:
        return self.answer(**fields).choices[0].text


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {version: make_adapter(tiny_model, folder / version, seed) for seed, version in ((1, V1), (2, V2))}


@pytest.fixture(scope="module", params=list(ENGINES.values()), ids=list(ENGINES))
def setup(request: pytest.FixtureRequest, tiny_model: Path, adapters: dict[str, Path]) -> Iterator[Setup]:
    with ExitStack() as cleanup:

        def start() -> InferenceEngine:
            engine: InferenceEngine = request.param(tiny_model, cleanup)
            cleanup.callback(engine.stop, 10)
            engine.start().result(60)
            return engine

        yield Setup(start(), adapters, start)


@pytest.fixture
def engine(setup: Setup) -> Iterator[InferenceEngine]:
    """The engine, with only the base loaded after the test."""
    yield setup.engine
    for version in setup.engine.versions()[1:]:
        setup.engine.unload(version)


# --- requests -----------------------------------------------------------------------------------------------------


def test_pieces_arrive_in_order_before_one_result(setup: Setup) -> None:
    listener = setup.submit(max_tokens=40, n=2, sampling=SAMPLED)
    result = listener.result()
    assert len(listener.results) == 1
    assert [choice.index for choice in result.choices] == [0, 1]
    for choice in result.choices:
        pieces = [piece for piece in listener.pieces if piece.choice == choice.index]
        assert len(pieces) > 1
        assert "".join(piece.text for piece in pieces) == choice.text
        finish_reasons = [piece.finish_reason for piece in pieces]
        assert finish_reasons == [*[None] * (len(pieces) - 1), choice.finish_reason]


def test_token_limit_ends_answer_as_length(setup: Setup) -> None:
    result = setup.answer(max_tokens=8, sampling=SAMPLED)
    assert result.status == "completed"
    assert result.error is None
    assert result.choices[0].finish_reason == "length"
    assert result.usage.completion_tokens == 8


def test_answer_stops_before_a_stop_string(setup: Setup) -> None:
    text = setup.text(max_tokens=24, sampling=SAMPLED)
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    [choice] = setup.answer(max_tokens=24, sampling=SAMPLED, stop=(stop,)).choices
    assert choice.text == text[: text.index(stop)]
    assert choice.finish_reason == "stop"


def test_usage_counts_prompt_once_and_tokens_of_all_choices(setup: Setup) -> None:
    short = setup.answer(max_tokens=5, sampling=SAMPLED)
    long = setup.answer(prompt="abc " * 20, max_tokens=5, sampling=SAMPLED, n=3)
    assert 0 < short.usage.prompt_tokens < long.usage.prompt_tokens < 200
    assert short.usage.completion_tokens == 5
    assert long.usage.completion_tokens == 15


def test_result_has_the_time_of_the_first_token(setup: Setup) -> None:
    before = setup.answer(max_tokens=2).first_token_at
    after = setup.answer(max_tokens=2).first_token_at
    assert before is not None
    assert after is not None
    assert before < after


def test_equal_seeds_reproduce_an_answer_and_others_do_not(setup: Setup) -> None:
    texts = [
        [
            choice.text
            for choice in setup.answer(n=2, max_tokens=24, sampling=Sampling(2.0, 1.0, seed)).choices
        ]
        for seed in (5, 5, 6)
    ]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    assert texts[0][0] != texts[0][1]


def test_greedy_answers_ignore_the_seed(setup: Setup) -> None:
    texts = {setup.text(max_tokens=12, sampling=Sampling(0.0, 1.0, seed)) for seed in (None, 1, 2)}
    assert len(texts) == 1


def test_sampling_differs_between_requests_of_one_moment(setup: Setup) -> None:
    samplings = (Sampling(), Sampling(1.0), Sampling(1.0, 0.5), SAMPLED)
    listeners = [setup.submit(max_tokens=6, sampling=sampling) for sampling in samplings]
    assert [listener.result().status for listener in listeners] == ["completed"] * 4


# --- options ------------------------------------------------------------------------------------------------------


def test_supported_options_are_options_and_do_not_change(setup: Setup) -> None:
    supported = setup.engine.supported_options()
    assert supported <= OPTION_NAMES
    assert setup.answer(max_tokens=2).status == "completed"
    assert setup.engine.supported_options() == supported


def test_supported_logprobs_cover_the_tokens_of_the_answer(setup: Setup) -> None:
    options = GenerationOptions(logprobs=True, top_logprobs=2)
    if not options.names() <= setup.engine.supported_options():
        options = GenerationOptions()  # the gateway asks such an engine for none
    listener = setup.submit(max_tokens=5, n=2, sampling=SAMPLED, options=options)
    for choice in listener.result().choices:
        pieces = [piece for piece in listener.pieces if piece.choice == choice.index]
        assert tuple(token for piece in pieces for token in piece.logprobs) == choice.logprobs
        assert len(choice.logprobs) == (5 if options.logprobs else 0)
        for token in choice.logprobs:
            assert len(token.top) >= 2
            assert -1e6 < token.logprob <= 0


def test_supported_tools_are_called_and_their_parts_join(setup: Setup) -> None:
    tool = ToolDefinition(type="function", function=FunctionDefinition(name="look_up"))
    options = GenerationOptions(tools=(tool,), tool_choice="required")
    is_supported = options.names() <= setup.engine.supported_options()
    listener = setup.submit(max_tokens=200, options=options if is_supported else GenerationOptions())
    [choice] = listener.result().choices
    assert (
        join_tool_calls(delta for piece in listener.pieces for delta in piece.tool_calls) == choice.tool_calls
    )
    assert bool(choice.tool_calls) == is_supported == (choice.finish_reason == "tool_calls")


# --- cancellation -------------------------------------------------------------------------------------------------


def test_cancelled_request_ends_early(setup: Setup) -> None:
    listener = RecordingListener()
    request = generation_request(max_tokens=LONG, sampling=Sampling(temperature=2.0, seed=1))
    generation = submit(setup.engine, request, listener)
    assert listener.started.wait(60)
    generation.cancel()
    result = listener.result()
    assert result.status == "cancelled"
    assert 0 < result.usage.completion_tokens < LONG // 2
    assert result.choices[0].finish_reason == "cancelled"
    assert "".join(piece.text for piece in listener.pieces) == result.choices[0].text


def test_request_cancelled_behind_another_ends_too(setup: Setup) -> None:
    first, second = RecordingListener(), RecordingListener()
    # An engine may run both at once or let the second one wait.
    requests = [generation_request(max_tokens=LONG, sampling=Sampling(2.0, 1.0, seed)) for seed in (1, 2)]
    generations = [
        submit(setup.engine, request, listener)
        for request, listener in zip(requests, (first, second), strict=True)
    ]
    assert first.started.wait(60)
    for generation in reversed(generations):
        generation.cancel()
    assert [listener.result().status for listener in (first, second)] == ["cancelled"] * 2
    assert second.result().usage.completion_tokens < LONG // 2


def test_cancelling_an_ended_request_has_no_effect(setup: Setup) -> None:
    listener = RecordingListener()
    generation = submit(setup.engine, generation_request(max_tokens=2), listener)
    assert listener.result().status == "completed"
    generation.cancel()
    assert setup.answer(max_tokens=2).status == "completed"
    assert len(listener.results) == 1


# --- versions -----------------------------------------------------------------------------------------------------


def test_loaded_versions_are_listed_after_the_base(setup: Setup, engine: InferenceEngine) -> None:
    assert engine.versions() == (BASE.version,)
    engine.load(V1, setup.adapters[V1])
    engine.load(V2, setup.adapters[V2])
    assert engine.versions() == (BASE.version, V1, V2)
    engine.unload(V1)
    assert engine.versions() == (BASE.version, V2)


def test_requests_in_flight_are_answered_by_their_own_version(setup: Setup, engine: InferenceEngine) -> None:
    """I8."""
    versions = (BASE.version, V1, V2)
    engine.load(V1, setup.adapters[V1])
    engine.load(V2, setup.adapters[V2])
    expected = {version: setup.text(version=version, max_tokens=16) for version in versions}
    assert len(set(expected.values())) == 3
    for _ in range(3):
        listeners = [(version, setup.submit(version=version, max_tokens=16)) for version in versions]
        for version, listener in listeners:
            assert listener.result().choices[0].text == expected[version]


def test_base_answers_as_before_after_loads_and_unloads(setup: Setup, engine: InferenceEngine) -> None:
    before = setup.text(max_tokens=16)
    engine.load(V1, setup.adapters[V1])
    assert setup.text(max_tokens=16) == before
    engine.unload(V1)
    assert setup.text(max_tokens=16) == before


def test_requests_in_flight_survive_loads_and_unloads(setup: Setup, engine: InferenceEngine) -> None:
    """I9."""
    engine.load(V1, setup.adapters[V1])
    listener = setup.submit(max_tokens=200, sampling=SAMPLED)
    assert listener.started.wait(60)
    engine.load(V2, setup.adapters[V2])
    engine.unload(V1)
    assert listener.result().status == "completed"
    assert listener.result().usage.completion_tokens == 200


def test_version_that_is_not_loaded_is_unknown(setup: Setup, engine: InferenceEngine) -> None:
    listener = RecordingListener()
    with pytest.raises(UnknownVersion):
        submit(engine, generation_request(version=V1), listener)
    engine.load(V1, setup.adapters[V1])
    engine.unload(V1)
    with pytest.raises(UnknownVersion):
        submit(engine, generation_request(version=V1), listener)
    assert (listener.pieces, listener.results) == ([], [])


def test_unloaded_version_can_be_loaded_again(setup: Setup, engine: InferenceEngine) -> None:
    engine.load(V1, setup.adapters[V1])
    before = setup.text(version=V1, max_tokens=16)
    engine.unload(V1)
    engine.load(V1, setup.adapters[V1])
    assert setup.text(version=V1, max_tokens=16) == before


def test_loading_twice_and_unloading_twice_have_no_effect(setup: Setup, engine: InferenceEngine) -> None:
    engine.load(V1, setup.adapters[V1])
    engine.load(V1, setup.adapters[V1])
    assert engine.versions() == (BASE.version, V1)
    for _ in range(2):
        engine.unload(V1)
    assert engine.versions() == (BASE.version,)


def test_base_cannot_be_unloaded(setup: Setup, engine: InferenceEngine) -> None:
    engine.unload(BASE.version)
    assert engine.versions() == (BASE.version,)
    assert setup.answer(max_tokens=2).status == "completed"


def test_unusable_artifact_is_refused_and_changes_nothing(
    setup: Setup, engine: InferenceEngine, tmp_path: Path
) -> None:
    before = setup.text(max_tokens=16)
    with pytest.raises(BadArtifact):
        engine.load(V1, tmp_path)
    assert engine.versions() == (BASE.version,)
    assert setup.text(max_tokens=16) == before
    engine.load(V1, setup.adapters[V1])
    assert setup.answer(version=V1, max_tokens=2).status == "completed"


def test_folder_may_be_deleted_after_loading(
    setup: Setup, engine: InferenceEngine, tiny_model: Path, tmp_path: Path
) -> None:
    engine.load(V1, setup.adapters[V1])
    expected = setup.text(version=V1, max_tokens=16)
    engine.unload(V1)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in setup.adapters[V1].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    engine.load(V1, copy)
    for file in copy.iterdir():
        file.unlink()
    copy.rmdir()
    assert setup.text(version=V1, max_tokens=16) == expected


# --- limits and shutdown ------------------------------------------------------------------------------------------


def test_full_queue_refuses_and_later_accepts(setup: Setup) -> None:
    listeners = [RecordingListener() for _ in range(64)]

    async def submit_all_at_once() -> list[object]:
        requests = (
            generation_request(max_tokens=100, sampling=Sampling(2.0, 1.0, seed)) for seed in range(64)
        )
        submissions = map(setup.engine.submit, requests, listeners)
        return await asyncio.gather(*submissions, return_exceptions=True)

    results = asyncio.run(submit_all_at_once())
    refused = [isinstance(result, Overloaded) for result in results]
    assert all(isinstance(result, Overloaded) for result in results if isinstance(result, BaseException))
    assert MAX_WAITING <= refused.count(False) < 64
    for listener, is_refused in zip(listeners, refused, strict=True):
        if is_refused:
            assert (listener.pieces, listener.results) == ([], [])
        else:
            assert listener.result().status == "completed"
    assert setup.answer(max_tokens=2).status == "completed"


def test_conversation_that_fills_the_context_is_refused(setup: Setup) -> None:
    listener = RecordingListener()
    with pytest.raises(ContextExceeded):
        submit(setup.engine, generation_request(prompt="word " * MAX_CONTEXT), listener)
    assert (listener.pieces, listener.results) == ([], [])


def test_answer_ends_where_the_context_does(setup: Setup) -> None:
    result = setup.answer(
        prompt="x " * (MAX_CONTEXT // 2 - 60), max_tokens=10 * MAX_CONTEXT, sampling=SAMPLED
    )
    assert result.status == "completed"
    assert result.choices[0].finish_reason == "length"
    assert result.usage.prompt_tokens + result.usage.completion_tokens == MAX_CONTEXT


def test_stopped_engine_has_ended_its_requests_and_refuses_new_ones(setup: Setup) -> None:
    engine = setup.start_another()
    listeners = [RecordingListener() for _ in range(3)]
    for seed, listener in enumerate(listeners):
        submit(engine, generation_request(max_tokens=LONG, sampling=Sampling(2.0, 1.0, seed)), listener)
    assert listeners[0].started.wait(60)
    engine.stop(0.05)
    assert listeners[0].result(0).status == "cancelled"
    for listener in listeners[1:]:
        assert listener.result(0).status in ("cancelled", "failed")
        assert bool(listener.result(0).error) == (listener.result(0).status == "failed")
    with pytest.raises(Retryable):
        submit(engine, generation_request(), RecordingListener())
