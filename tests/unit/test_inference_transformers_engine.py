"""Queueing, joining, leaving and loading of the transformers engine, with a fake model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from services.inference.core.generation_request import ContextExceeded, GenerationResult, Piece
from services.inference.engine import transformers_engine
from services.inference.engine.loaded_model import LoadedModel
from services.inference.engine.transformers_engine import LOAD_SHARE, LOAD_SLICE_S, TransformersEngine
from shared.errors import BadArtifact, LoopwrightError, Overloaded, Retryable
from tests.inference_factories import (
    BASE,
    FakeBatch,
    FakeModels,
    FakeTokenizer,
    RecordingListener,
    generation_request,
    submit,
)

V1 = "assistant@v1-00000000"


@pytest.fixture
def models() -> FakeModels:
    return FakeModels()


@pytest.fixture
def batch() -> FakeBatch:
    return FakeBatch()


@pytest.fixture
def engine(models: FakeModels, batch: FakeBatch) -> Iterator[TransformersEngine]:
    engine = started(models, batch)
    yield engine
    if batch.gate is not None:
        batch.gate.set()
    engine.stop(5)


def started(models: FakeModels, batch: FakeBatch) -> TransformersEngine:
    engine = TransformersEngine(
        lambda: LoadedModel(models, batch), FakeTokenizer(), base=BASE.version, max_waiting=3
    )
    engine.start().result(5)
    batch.steps.clear()
    batch.entered.clear()
    return engine


def send(engine: TransformersEngine, response_id: str, **fields: Any) -> RecordingListener:
    listener = RecordingListener()
    submit(engine, generation_request(response_id, **fields), listener)
    return listener


def block(engine: TransformersEngine, batch: FakeBatch, **fields: Any) -> RecordingListener:
    """Let the engine run a step that lasts until `batch.gate` is set."""
    batch.gate = Event()
    listener = send(engine, "first", **fields)
    assert batch.entered.wait(5)
    return listener


def unblock(batch: FakeBatch) -> None:
    assert batch.gate is not None
    batch.gate.set()


def in_thread(call: Any) -> tuple[threading.Thread, list[LoopwrightError]]:
    """Run `call` in a thread; the list gets its error."""
    errors: list[LoopwrightError] = []

    def run() -> None:
        try:
            call()
        except LoopwrightError as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, errors


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


# --- joining ------------------------------------------------------------------------------------------------------


def test_request_joins_the_step_after_the_one_that_runs(engine: TransformersEngine, batch: FakeBatch) -> None:
    running = block(engine, batch)
    joined = send(engine, "joined", max_tokens=1)
    unblock(batch)
    assert joined.result(5).usage.completion_tokens == 1
    running.result(5)
    assert batch.steps[:3] == [["first"], ["first", "joined"], ["first"]]


def test_full_queue_refuses_one_more(engine: TransformersEngine, batch: FakeBatch) -> None:
    block(engine, batch)
    for number in range(3):
        send(engine, f"r{number}")
    with pytest.raises(Overloaded, match="3 requests are waiting"):
        send(engine, "one too many")


def test_request_waits_for_a_place_and_another_version_does_not(models: FakeModels, batch: FakeBatch) -> None:
    batch.places = 1
    engine = started(models, batch)
    engine.load(V1, Path())
    batch.steps.clear()
    running = block(engine, batch)
    second = send(engine, "second")
    other = send(engine, "other", version=V1)
    unblock(batch)
    for listener in (running, second, other):
        assert listener.result(5).status == "completed"
    assert batch.steps[1] == ["first", "other"]
    assert ["second"] in batch.steps
    engine.stop(5)


def test_large_request_is_not_overtaken_by_small_ones(models: FakeModels) -> None:
    batch = FakeBatch(memory=300)
    engine = started(models, batch)
    running = block(engine, batch)
    large = send(engine, "large", prompt="a" * 150, max_tokens=100)
    small = send(engine, "small", max_tokens=1)
    unblock(batch)
    for listener in (running, large, small):
        assert listener.result(5).status == "completed"
    assert [step for step in batch.steps if "small" in step] == [["large", "small"]]
    engine.stop(5)


def test_choices_of_a_request_join_as_places_become_free(models: FakeModels, batch: FakeBatch) -> None:
    batch.places = 2
    engine = started(models, batch)
    result = send(engine, "r1", n=5).result(5)
    assert [choice.text for choice in result.choices] == ["hello"] * 5
    assert {len(step) for step in batch.steps} == {1, 2}
    engine.stop(5)


def test_conversation_larger_than_the_cache_is_refused(models: FakeModels) -> None:
    engine = started(models, FakeBatch(memory=120))
    with pytest.raises(
        ContextExceeded, match="at most 119 with this replica's LOOPWRIGHT_INFERENCE_KV_CACHE_MB"
    ):
        send(engine, "r1", prompt="a" * 120)
    assert send(engine, "r2", prompt="a" * 117).result(5).usage.completion_tokens == 3
    engine.stop(5)


# --- leaving ------------------------------------------------------------------------------------------------------


def test_failed_step_fails_its_requests_and_no_later_ones(
    engine: TransformersEngine, batch: FakeBatch
) -> None:
    batch.failure = "RuntimeError: out of memory"
    failed = send(engine, "r1")
    assert failed.result(5).status == "failed"
    assert failed.result(5).error == "RuntimeError: out of memory"
    batch.failure = None
    assert send(engine, "r2").result(5).status == "completed"
    assert len(failed.results) == 1


def test_unexpected_error_ends_all_requests_and_the_engine_goes_on(
    engine: TransformersEngine, batch: FakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = block(engine, batch)
    waiting = send(engine, "waiting")
    with monkeypatch.context() as patch:

        def has_place(version: str) -> bool:
            raise ZeroDivisionError

        patch.setattr(batch, "has_place", has_place)
        unblock(batch)
        assert {listener.result(5).status for listener in (running, waiting)} == {"failed"}
    assert send(engine, "r2").result(5).status == "completed"


def test_request_cancelled_while_waiting_is_never_generated(
    engine: TransformersEngine, batch: FakeBatch
) -> None:
    block(engine, batch)
    cancelled = RecordingListener()
    submit(engine, generation_request("cancelled"), cancelled).cancel()
    unblock(batch)
    assert cancelled.result(5).status == "cancelled"
    assert all("cancelled" not in step for step in batch.steps)


def test_request_cancelled_while_running_frees_its_row(engine: TransformersEngine, batch: FakeBatch) -> None:
    batch.gate = Event()
    listener = RecordingListener()
    generation = submit(engine, generation_request("r1", n=10), listener)
    assert batch.entered.wait(5)
    generation.cancel()
    batch.gate.set()
    result = listener.result(5)
    assert result.status == "cancelled"
    assert result.usage.completion_tokens == 8
    assert {choice.finish_reason for choice in result.choices} == {"cancelled"}
    assert len(batch.steps) == 1


# --- versions -----------------------------------------------------------------------------------------------------


def test_adapter_that_does_not_fit_is_refused(engine: TransformersEngine, models: FakeModels) -> None:
    models.unusable.add(V1)
    with pytest.raises(BadArtifact, match="does not fit"):
        engine.load(V1, Path())


def test_version_that_cannot_answer_is_unloaded(
    engine: TransformersEngine, models: FakeModels, batch: FakeBatch
) -> None:
    batch.failure = "ZeroDivisionError"
    with pytest.raises(BadArtifact, match="cannot answer: ZeroDivisionError"):
        engine.load(V1, Path())
    batch.failure = None
    send(engine, "r1").result(5)
    assert models.loaded == [BASE.version]
    assert engine.versions() == (BASE.version,)


def test_version_with_an_empty_answer_is_refused(engine: TransformersEngine, batch: FakeBatch) -> None:
    batch.text = ""
    with pytest.raises(BadArtifact, match="is empty"):
        engine.load(V1, Path())


def test_requests_are_answered_while_a_version_loads(
    engine: TransformersEngine, models: FakeModels, batch: FakeBatch
) -> None:
    models.may_load.clear()
    running = block(engine, batch)
    loader, _ = in_thread(lambda: engine.load(V1, Path()))
    unblock(batch)
    assert running.result(5).status == "completed"
    loader.join(0.1)
    assert loader.is_alive()
    assert send(engine, "r2").result(5).status == "completed"
    models.may_load.set()
    loader.join(20)
    assert engine.versions() == (BASE.version, V1)


@pytest.mark.parametrize("step_s", [0.001, 0.05, 0.4, 3.0])
def test_loading_takes_a_fair_share_of_the_time(step_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the steps are, loading is done in time, and no pause between two steps is long beside them."""
    clock, pauses, ends = [0.0], [0.0], []

    class TimedBatch(FakeBatch):
        def step(self) -> None:
            ends.append(clock[0])
            pauses.append(0.0)
            clock[0] += step_s
            super().step()

    class SlowModels(FakeModels):
        def load(self, version: str, folder: Path) -> Iterator[None]:
            for _ in range(500):
                clock[0] += 0.01
                pauses[-1] += 0.01
                yield
            yield from super().load(version, folder)

    monkeypatch.setattr(transformers_engine.time, "monotonic", lambda: clock[0])
    models, batch = SlowModels(), TimedBatch(text="x" * 2000)
    engine = started(models, batch)
    running = block(engine, batch, max_tokens=2000)
    loader, _ = in_thread(lambda: engine.load(V1, Path()))
    start = clock[0]
    unblock(batch)
    running.result(20)
    loader.join(20)
    assert V1 in engine.versions()
    engine.stop(5)
    during = [end for end in ends if end - start < 5.0 * (1 + 1 / LOAD_SHARE) + step_s]
    assert max(pauses) <= max(LOAD_SLICE_S, LOAD_SHARE * step_s) + 0.011
    assert sum(pauses[1 : len(during) + 2]) == pytest.approx(5.0), (
        "loaded in at most three times its own time"
    )


def test_unloaded_version_stays_until_its_last_request_ends(
    engine: TransformersEngine, models: FakeModels, batch: FakeBatch
) -> None:
    engine.load(V1, Path())
    batch.entered.clear()
    batch.gate = Event()
    running = send(engine, "r1", version=V1)
    assert batch.entered.wait(5)
    waiting = send(engine, "r2", version=V1)
    engine.unload(V1)
    assert V1 in models.loaded
    unblock(batch)
    assert {listener.result(5).status for listener in (running, waiting)} == {"completed"}
    send(engine, "r3").result(5)
    assert models.loaded == [BASE.version]


def test_unloaded_version_stays_for_a_request_that_waits(models: FakeModels) -> None:
    batch = FakeBatch(memory=300)
    engine = started(models, batch)
    engine.load(V1, Path())
    batch.entered.clear()
    running = block(engine, batch, prompt="a" * 200)
    in_memory: list[bool] = []

    class Watcher(RecordingListener):
        """Listener that notes whether the version is in memory when its answer begins."""

        def on_piece(self, piece: Piece) -> None:
            in_memory.append(V1 in models.loaded)

    waiting = Watcher()
    submit(engine, generation_request("waiting", version=V1), waiting)
    engine.unload(V1)
    unblock(batch)
    assert {listener.result(5).status for listener in (running, waiting)} == {"completed"}
    assert in_memory
    assert all(in_memory)
    engine.stop(5)


# --- start and stop -----------------------------------------------------------------------------------------------


def test_stop_finishes_running_requests_and_fails_waiting_ones(models: FakeModels, batch: FakeBatch) -> None:
    batch.places = 1
    engine = started(models, batch)
    running = block(engine, batch)
    waiting = send(engine, "waiting")

    class Unblocker(RecordingListener):
        """Listener that ends the running step as soon as `stop` has failed the waiting requests."""

        def on_result(self, result: GenerationResult) -> None:
            unblock(batch)

    submit(engine, generation_request("last in the queue"), Unblocker())
    engine.stop(5)
    assert waiting.result(0).status == "failed"
    assert running.result(0).status == "completed"
    with pytest.raises(Retryable, match="shutting down"):
        send(engine, "late")


def test_load_during_a_stop_may_be_repeated(engine: TransformersEngine, batch: FakeBatch) -> None:
    block(engine, batch)
    loader, errors = in_thread(lambda: engine.load(V1, Path()))
    stopper = threading.Thread(target=lambda: engine.stop(5), daemon=True)
    stopper.start()
    unblock(batch)
    loader.join(5)
    stopper.join(5)
    assert [type(error) for error in errors] == [Retryable]


def test_base_that_cannot_be_loaded_fails_the_start() -> None:
    def make_model() -> LoadedModel:
        raise BadArtifact("no weights")

    engine = TransformersEngine(make_model, FakeTokenizer(), base=BASE.version)
    with pytest.raises(BadArtifact, match="no weights"):
        engine.start().result(5)


def test_base_that_cannot_answer_fails_the_start(models: FakeModels, batch: FakeBatch) -> None:
    batch.failure = "the model's output has values that are not finite"
    with pytest.raises(BadArtifact, match="not finite"):
        started(models, batch)
