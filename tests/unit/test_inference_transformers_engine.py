"""Admission, batches and their ends, with a model that is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from services.inference.core.generation_request import GenerationRequest, Sampling
from services.inference.engine.transformers_engine import TransformersEngine, select_batch
from shared.errors import BadArtifact, Overloaded, Retryable
from tests.inference_factories import BASE, FakeComputer, Heard, decode


@pytest.fixture
def computer() -> FakeComputer:
    return FakeComputer()


@pytest.fixture
def engine(computer: FakeComputer) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(lambda: computer, decode, base=BASE.version, max_waiting=3, batch_wait_s=0.0)
    engine.start()
    engine.loaded.result(5)
    yield engine
    if computer.gate is not None:
        computer.gate.set()
    engine.stop(5)


def busy(engine: TransformersEngine, computer: FakeComputer) -> Heard:
    """The engine is held in a batch until `computer.gate` is set."""
    computer.gate = Event()
    heard = Heard()
    engine.submit(heard.ask("first"))
    assert computer.entered.wait(5)
    return heard


def test_an_ask_is_answered_and_ends_once(engine: TransformersEngine) -> None:
    heard = Heard()
    engine.submit(heard.ask("r1"))
    assert heard.done.wait(5)
    assert "".join(piece.text for piece in heard.pieces) == "hello"
    assert heard.pieces[-1].finish_reason == "stop"
    assert [end.status for end in heard.ends] == ["completed"]


def test_a_bound_on_tokens_ends_the_row(engine: TransformersEngine) -> None:
    heard = Heard()
    ask = heard.ask("r1", max_tokens=2)
    engine.submit(ask)
    assert heard.done.wait(5)
    assert (ask.rows[0].text, ask.rows[0].finish_reason, ask.rows[0].tokens) == ("he", "length", 2)


def test_a_full_queue_refuses_one_more(engine: TransformersEngine, computer: FakeComputer) -> None:
    busy(engine, computer)
    for number in range(3):
        engine.submit(Heard().ask(f"r{number}"))
    with pytest.raises(Overloaded, match="3 requests are waiting"):
        engine.submit(Heard().ask("one too many"))


def test_waiting_asks_of_one_version_go_together_and_others_after(
    engine: TransformersEngine, computer: FakeComputer
) -> None:
    busy(engine, computer)
    last = Heard()
    engine.submit(Heard().ask("a"))
    engine.submit(last.ask("b", version="assistant@v1-00000000"))
    engine.submit(Heard().ask("c"))
    assert computer.gate is not None
    computer.gate.set()
    assert last.done.wait(5)
    assert computer.batches[1:] == [(None, ["a", "c"]), ("assistant@v1-00000000", ["b"])]


def test_a_failed_batch_fails_its_asks_and_the_engine_goes_on(
    engine: TransformersEngine, computer: FakeComputer
) -> None:
    computer.failure = RuntimeError("out of memory")
    failed, after = Heard(), Heard()
    engine.submit(failed.ask("r1"))
    assert failed.done.wait(5)
    assert [(end.status, end.error) for end in failed.ends] == [("failed", "RuntimeError: out of memory")]
    computer.failure = None
    engine.submit(after.ask("r2"))
    assert after.done.wait(5)
    assert after.ends[0].status == "completed"


def test_who_left_while_waiting_costs_nothing(engine: TransformersEngine, computer: FakeComputer) -> None:
    busy(engine, computer)
    left = Heard()
    ask = left.ask("left")
    engine.submit(ask)
    ask.cancel()
    assert computer.gate is not None
    computer.gate.set()
    assert left.done.wait(5)
    assert left.ends[0].status == "cancelled"
    assert all("left" not in names for _, names in computer.batches)


def test_who_leaves_in_the_middle_frees_the_row(engine: TransformersEngine, computer: FakeComputer) -> None:
    computer.gate = Event()
    heard = Heard()
    ask = heard.ask("r1")
    engine.submit(ask)
    assert computer.entered.wait(5)
    ask.cancel()
    computer.gate.set()
    assert heard.done.wait(5)
    assert heard.ends[0].status == "cancelled"
    assert ask.rows[0].tokens == 1


def test_a_version_that_does_not_fit_is_said_to_the_caller(
    engine: TransformersEngine, computer: FakeComputer
) -> None:
    computer.refuses.add("assistant@v1-00000000")
    with pytest.raises(BadArtifact, match="does not fit"):
        engine.load("assistant@v1-00000000", Path())


def test_a_version_that_fails_its_trial_is_gone_again(
    engine: TransformersEngine, computer: FakeComputer
) -> None:
    def smoke(version: str | None) -> None:
        raise ZeroDivisionError

    computer.smoke = smoke  # type: ignore[method-assign]
    with pytest.raises(BadArtifact, match="cannot answer"):
        engine.load("assistant@v1-00000000", Path())
    heard = Heard()
    engine.submit(heard.ask("r1"))
    assert heard.done.wait(5)
    assert not computer.loaded


def test_stopping_lets_running_asks_finish_and_fails_waiting_ones(
    engine: TransformersEngine, computer: FakeComputer
) -> None:
    running, waiting = busy(engine, computer), Heard()
    engine.submit(waiting.ask("w"))
    waiting_failed = waiting.done

    def release(ask: GenerationRequest, end: object) -> None:
        assert computer.gate is not None
        computer.gate.set()

    watcher = Heard()
    watcher.end = release  # type: ignore[method-assign, assignment]
    engine.submit(watcher.ask("opens the gate when it is failed"))
    engine.stop(5)
    assert waiting_failed.is_set()
    assert waiting.ends[0].status == "failed"
    assert running.ends[0].status == "completed"
    with pytest.raises(Retryable, match="stopping"):
        engine.submit(Heard().ask("late"))


def test_a_base_that_cannot_be_loaded_is_said() -> None:
    def broken() -> FakeComputer:
        raise BadArtifact("no weights")

    engine = TransformersEngine(broken, decode, base=BASE.version)
    engine.start()
    with pytest.raises(BadArtifact, match="no weights"):
        engine.loaded.result(5)


def named(asks: list[GenerationRequest]) -> list[str]:
    return [ask.response_id for ask in asks]


def test_a_batch_keeps_its_bounds_but_the_oldest_always_goes() -> None:
    heard = Heard()
    asks = [heard.ask("a", n=8), heard.ask("b", n=8), heard.ask("c"), heard.ask("d", prompt=[1] * 5000)]
    assert named(select_batch(asks, 16, 100_000)) == ["a", "b"]
    assert named(select_batch(asks, 9, 100_000)) == ["a", "c"]
    assert named(select_batch(asks[2:], 16, 1000)) == ["c"]
    assert named(select_batch(asks[3:], 16, 1000)) == ["d"]


def test_only_equal_sampling_shares_a_batch_and_a_seed_is_alone() -> None:
    heard, warm = Heard(), Sampling(temperature=1.0)
    seeded = Sampling(temperature=1.0, seed=1)
    asks = [
        heard.ask("warm", sampling=warm),
        heard.ask("cold", sampling=Sampling(seed=7)),
        heard.ask("cold2"),
    ]
    assert named(select_batch(asks, 16, 100_000)) == ["warm"]
    assert named(select_batch(asks[1:], 16, 100_000)) == ["cold", "cold2"]
    assert named(
        select_batch([heard.ask("s", sampling=seeded), heard.ask("t", sampling=seeded)], 16, 9999)
    ) == ["s"]


def test_clients_that_were_answered_together_stay_together(computer: FakeComputer) -> None:
    """And once all of them are back nobody waits for the rest of the window."""
    engine = TransformersEngine(lambda: computer, decode, base=BASE.version, batch_wait_s=1.0)
    engine.start()
    running = busy(engine, computer)
    last = Heard()
    engine.submit(last.ask("b"))
    engine.submit(Heard().ask("c"))
    assert computer.gate is not None
    computer.gate.set()
    assert running.done.wait(5)
    engine.submit(Heard().ask("first again"))
    assert last.done.wait(0.9)
    assert computer.batches[1:] == [(None, ["b", "c", "first again"])]
    engine.stop(5)
