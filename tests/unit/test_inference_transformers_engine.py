"""Queueing, batching and endings of the transformers engine, with a fake model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from services.inference.core.generation_request import GenerationResult, Sampling
from services.inference.engine.batching import QueuedGeneration, select_batch
from services.inference.engine.transformers_engine import TransformersEngine
from shared.errors import BadArtifact, Overloaded, Retryable
from tests.inference_factories import (
    BASE,
    FakeModelRunner,
    FakeTokenizer,
    RecordingListener,
    generation_request,
    submit,
)

V1 = "assistant@v1-00000000"


@pytest.fixture
def runner() -> FakeModelRunner:
    return FakeModelRunner()


@pytest.fixture
def engine(runner: FakeModelRunner) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(
        lambda: runner, FakeTokenizer(), base=BASE.version, max_waiting=3, batch_wait_s=0.0
    )
    engine.start().result(5)
    yield engine
    if runner.gate is not None:
        runner.gate.set()
    engine.stop(5)


def send(engine: TransformersEngine, response_id: str, **fields: Any) -> RecordingListener:
    listener = RecordingListener()
    submit(engine, generation_request(response_id, **fields), listener)
    return listener


def block(engine: TransformersEngine, runner: FakeModelRunner) -> RecordingListener:
    """Let the engine run a batch that lasts until `runner.gate` is set."""
    runner.gate = Event()
    listener = send(engine, "first")
    assert runner.entered.wait(5)
    return listener


def unblock(runner: FakeModelRunner) -> None:
    assert runner.gate is not None
    runner.gate.set()


def test_request_is_answered_and_ends_once(engine: TransformersEngine) -> None:
    listener = send(engine, "r1")
    assert listener.result(5).choices[0].text == "hello"
    assert "".join(piece.text for piece in listener.pieces) == "hello"
    assert listener.pieces[-1].finish_reason == "stop"
    assert [result.status for result in listener.results] == ["completed"]


def test_token_limit_ends_the_row(engine: TransformersEngine) -> None:
    result = send(engine, "r1", max_tokens=2).result(5)
    assert (result.choices[0].text, result.choices[0].finish_reason) == ("he", "length")
    assert result.usage.completion_tokens == 2


def test_full_queue_refuses_one_more(engine: TransformersEngine, runner: FakeModelRunner) -> None:
    block(engine, runner)
    for number in range(3):
        send(engine, f"r{number}")
    with pytest.raises(Overloaded, match="3 requests are waiting"):
        send(engine, "one too many")


def test_waiting_requests_of_one_version_share_a_batch(
    engine: TransformersEngine, runner: FakeModelRunner
) -> None:
    engine.load(V1, Path())
    block(engine, runner)
    send(engine, "a")
    last = send(engine, "b", version=V1)
    send(engine, "c")
    unblock(runner)
    last.result(5)
    assert runner.batches[1:] == [(None, ["a", "c"]), (V1, ["b"])]


def test_failed_batch_fails_its_requests_and_no_later_ones(
    engine: TransformersEngine, runner: FakeModelRunner
) -> None:
    runner.failure = RuntimeError("out of memory")
    failed = send(engine, "r1")
    assert failed.result(5).status == "failed"
    assert failed.result(5).error == "RuntimeError: out of memory"
    runner.failure = None
    assert send(engine, "r2").result(5).status == "completed"
    assert len(failed.results) == 1


def test_request_cancelled_while_waiting_is_never_generated(
    engine: TransformersEngine, runner: FakeModelRunner
) -> None:
    block(engine, runner)
    cancelled = RecordingListener()
    submit(engine, generation_request("cancelled"), cancelled).cancel()
    unblock(runner)
    assert cancelled.result(5).status == "cancelled"
    assert all("cancelled" not in response_ids for _, response_ids in runner.batches)


def test_request_cancelled_while_running_frees_its_row(
    engine: TransformersEngine, runner: FakeModelRunner
) -> None:
    runner.gate = Event()
    listener = RecordingListener()
    generation = submit(engine, generation_request("r1"), listener)
    assert runner.entered.wait(5)
    generation.cancel()
    runner.gate.set()
    assert listener.result(5).status == "cancelled"
    assert listener.result(5).usage.completion_tokens == 1


def test_adapter_that_does_not_fit_is_refused(engine: TransformersEngine, runner: FakeModelRunner) -> None:
    runner.unusable.add(V1)
    with pytest.raises(BadArtifact, match="does not fit"):
        engine.load(V1, Path())


def test_version_that_fails_its_smoke_test_is_unloaded(
    engine: TransformersEngine, runner: FakeModelRunner
) -> None:
    def smoke_test(version: str | None) -> None:
        raise ZeroDivisionError

    runner.smoke_test = smoke_test  # type: ignore[method-assign]
    with pytest.raises(BadArtifact, match="cannot answer"):
        engine.load(V1, Path())
    send(engine, "r1").result(5)
    assert not runner.loaded
    assert engine.versions() == (BASE.version,)


def test_stop_finishes_running_requests_and_fails_waiting_ones(
    engine: TransformersEngine, runner: FakeModelRunner
) -> None:
    running = block(engine, runner)
    waiting = send(engine, "waiting")

    class Unblocker(RecordingListener):
        """Listener that ends the running batch as soon as `stop` has failed the waiting requests."""

        def on_result(self, result: GenerationResult) -> None:
            unblock(runner)

    submit(engine, generation_request("last in the queue"), Unblocker())
    engine.stop(5)
    assert waiting.result(0).status == "failed"
    assert running.result(0).status == "completed"
    with pytest.raises(Retryable, match="shutting down"):
        send(engine, "late")


def test_base_that_cannot_be_loaded_fails_the_start() -> None:
    def make_runner() -> FakeModelRunner:
        raise BadArtifact("no weights")

    engine = TransformersEngine(make_runner, FakeTokenizer(), base=BASE.version)
    with pytest.raises(BadArtifact, match="no weights"):
        engine.start().result(5)


def test_clients_answered_together_share_the_next_batch(runner: FakeModelRunner) -> None:
    """Once all of them are back, the batch does not wait any longer."""
    engine = TransformersEngine(lambda: runner, FakeTokenizer(), base=BASE.version, batch_wait_s=1.0)
    engine.start()
    running = block(engine, runner)
    last = send(engine, "b")
    send(engine, "c")
    unblock(runner)
    running.result(5)
    send(engine, "first again")
    last.result(0.9)
    assert runner.batches[1:] == [(None, ["b", "c", "first again"])]
    engine.stop(5)


# --- select_batch -------------------------------------------------------------------------------------------------


def queued(response_id: str, prompt_tokens: int = 3, **fields: Any) -> QueuedGeneration:
    request = generation_request(response_id, **fields)
    return QueuedGeneration(request, [1] * prompt_tokens, request.max_tokens, (), RecordingListener())


def selected(waiting: list[QueuedGeneration], max_rows: int = 16, max_tokens: int = 100_000) -> list[str]:
    return [generation.request.response_id for generation in select_batch(waiting, max_rows, max_tokens)]


def test_batch_keeps_its_limits_but_always_takes_the_oldest() -> None:
    waiting = [queued("a", n=8), queued("b", n=8), queued("c"), queued("d", prompt_tokens=5000)]
    assert selected(waiting) == ["a", "b"]
    assert selected(waiting, max_rows=9) == ["a", "c"]
    assert selected(waiting[2:], max_tokens=1000) == ["c"]
    assert selected(waiting[3:], max_tokens=1000) == ["d"]


def test_batch_has_equal_sampling_and_a_seed_its_own() -> None:
    seeded = Sampling(temperature=1.0, seed=1)
    waiting = [
        queued("sampled", sampling=Sampling(temperature=1.0)),
        queued("greedy", sampling=Sampling(seed=7)),
        queued("greedy too"),
    ]
    assert selected(waiting) == ["sampled"]
    assert selected(waiting[1:]) == ["greedy", "greedy too"]
    assert selected([queued("s", sampling=seeded), queued("t", sampling=seeded)]) == ["s"]
