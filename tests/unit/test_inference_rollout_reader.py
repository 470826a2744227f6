"""Following `model.rollout`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from services.inference.rollout_reader import RolloutReader
from services.inference.version_registry import VersionRegistry
from services.inference.version_swap import Refusal, VersionSwap
from shared.adapters.artifacts_local import LocalArtifactStore
from shared.adapters.in_memory import MemoryLog, MemoryLogReader, MemoryPublisher
from shared.errors import BrokerUnavailable, Fatal, LoopwrightError
from shared.ports import LogReader
from shared.records import Output, Record
from shared.telemetry import Readiness
from shared.versions import RolloutRecord, VersionRef
from tests.inference_factories import BASE, LINE, reference, rollout

TOPIC = "model.rollout"


class Scene:
    def __init__(self, folder: Path) -> None:
        self.log = MemoryLog()
        self.folder = folder
        self.store = LocalArtifactStore(folder / "store")
        self.loads: list[str] = []
        self.serving = VersionRegistry(LINE, BASE, lambda _: None)
        self.readiness = Readiness("rollout")
        self.caught_up, self.applied, self.fatal = Event(), Event(), Event()
        self.error: LoopwrightError | None = None
        self.open: Callable[[], LogReader] = lambda: MemoryLogReader(self.log, [TOPIC])
        takeover = VersionSwap(self.serving, self.store, self, self.told)
        publisher = MemoryPublisher(self.log, "inference")
        self.reader = RolloutReader(self.opened, takeover, publisher, self.readiness, self.fail)
        ready = self.readiness.set

        def watched(name: str, ok: bool, detail: str = "") -> None:
            ready(name, ok, detail)
            if ok:
                self.caught_up.set()

        self.readiness.set = watched  # type: ignore[method-assign]

    def opened(self) -> LogReader:
        return self.open()

    def fail(self, error: LoopwrightError) -> None:
        self.error = error
        self.fatal.set()

    def told(self, refusals: tuple[Refusal, ...]) -> None:
        self.applied.set()

    def load(self, version: str, folder: Path) -> None:
        self.loads.append(version)

    def version(self, number: int) -> VersionRef:
        made = self.folder / f"v{number}"
        made.mkdir()
        (made / "weights.txt").write_text(f"version {number}")
        return reference(LINE, number, self.store.put(made)[1])

    def write(self, value: RolloutRecord | bytes | None) -> None:
        data = value.to_json() if isinstance(value, RolloutRecord) else value
        self.log.append(Output(TOPIC, LINE.encode(), data, (), 0))


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.reader.stop()


def test_it_is_ready_at_the_end_of_an_empty_topic_with_the_base(scene: Scene) -> None:
    assert not scene.readiness.report()[0]
    scene.reader.start()
    assert scene.caught_up.wait(5)
    assert scene.readiness.report() == (True, {"rollout": "ok"})
    assert scene.serving.snapshot().stable == BASE


def test_of_what_was_there_only_the_newest_is_loaded(scene: Scene) -> None:
    versions = [scene.version(number) for number in (1, 2, 3)]
    for seq, ref in ((1, versions[0]), (3, versions[2]), (2, versions[1])):
        scene.write(rollout(seq, ref))
    scene.reader.start()
    assert scene.caught_up.wait(5)
    assert scene.loads == [versions[2].version]


def test_a_record_that_comes_later_is_taken_over(scene: Scene) -> None:
    scene.reader.start()
    assert scene.caught_up.wait(5)
    v1 = scene.version(1)
    scene.write(rollout(1, v1))
    assert scene.applied.wait(5)
    assert scene.serving.snapshot().stable == v1


def test_garbage_becomes_a_dead_letter_and_the_next_record_works(scene: Scene) -> None:
    v1 = scene.version(1)
    scene.write(b"{not json")
    scene.write(None)
    scene.write(rollout(1, v1))
    scene.reader.start()
    assert scene.caught_up.wait(5)
    assert scene.serving.snapshot().stable == v1
    dead = scene.log.records("dead.letters")
    assert [letter.value for letter in dead] == [b"{not json"]
    headers = dict(dead[0].headers)
    assert b"model.rollout" in headers.values()
    assert b"inference" in headers.values()


def test_a_broker_that_is_away_is_waited_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.inference.rollout_reader.RECONNECT_S", 0.01)
    tries: list[int] = []

    def sometimes() -> LogReader:
        tries.append(1)
        if len(tries) < 3:
            raise BrokerUnavailable("away")
        return MemoryLogReader(scene.log, [TOPIC])

    scene.open = sometimes
    scene.reader.start()
    assert scene.caught_up.wait(5)
    assert len(tries) == 3


def test_what_cannot_go_on_is_said_and_not_hidden(scene: Scene) -> None:
    class Broken(MemoryLogReader):
        def poll(self, timeout: float) -> list[Record]:
            raise ZeroDivisionError

    scene.open = lambda: Broken(scene.log, [TOPIC])
    scene.reader.start()
    assert scene.fatal.wait(5)
    assert isinstance(scene.error, Fatal)


def test_positions_that_are_gone_end_the_process(scene: Scene) -> None:
    def gone(*_: Any) -> LogReader:
        raise Fatal("the log no longer holds the position")

    scene.open = gone
    scene.reader.start()
    assert scene.fatal.wait(5)
    assert "no longer holds" in str(scene.error)
