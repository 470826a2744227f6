"""Reading of `model.rollout`: which records are applied, and what happens to errors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import pytest

from services.inference import rollout_reader
from services.inference.last_record import LastRecord
from services.inference.rollout_reader import RolloutReader
from services.inference.version_registry import VersionRegistry
from services.inference.version_swap import Refusal, VersionSwap
from shared.adapters.artifacts_local import LocalArtifactStore
from shared.adapters.in_memory import InMemoryLog, InMemoryLogReader, InMemoryPublisher
from shared.errors import BrokerUnavailable, Fatal, LoopwrightError, NotPermitted
from shared.ports import LogReader
from shared.records import Output, Record
from shared.telemetry import Readiness
from shared.versions import RolloutRecord, VersionRef
from tests.inference_factories import BASE, LINE, RecordingEngine, rollout_record, version_ref

TOPIC = "model.rollout"


class Setup:
    """A rollout reader on the in-memory log."""

    def __init__(self, folder: Path) -> None:
        self.log = InMemoryLog()
        self.folder = folder
        self.store = LocalArtifactStore(folder / "store")
        self.engine = RecordingEngine(BASE.version)
        self.registry = VersionRegistry(LINE, BASE, self.engine.unload)
        self.readiness = Readiness("rollout")
        self.caught_up, self.applied, self.fatal = Event(), Event(), Event()
        self.error: LoopwrightError | None = None
        self.open_reader: Callable[[], LogReader] = lambda: InMemoryLogReader(self.log, [TOPIC])
        self.last = LastRecord(folder / "last.json", LINE)
        swap = VersionSwap(
            self.registry, self.store, self.engine, self.on_refusals, on_served=self.last.write
        )
        publisher = InMemoryPublisher(self.log, "inference")
        self.reader = RolloutReader(
            self.open_current_reader, swap, publisher, self.readiness, self.on_fatal, self.last
        )
        set_readiness = self.readiness.set

        def observe_readiness(name: str, ok: bool, detail: str = "") -> None:
            set_readiness(name, ok, detail)
            if ok:
                self.caught_up.set()

        self.readiness.set = observe_readiness  # type: ignore[method-assign]

    def open_current_reader(self) -> LogReader:
        return self.open_reader()

    def on_fatal(self, error: LoopwrightError) -> None:
        self.error = error
        self.fatal.set()

    def on_refusals(self, refusals: tuple[Refusal, ...]) -> None:
        self.applied.set()

    def put_version(self, number: int) -> VersionRef:
        """Store an artifact and return the reference to it."""
        source = self.folder / f"v{number}"
        source.mkdir()
        (source / "weights.txt").write_text(f"version {number}")
        return version_ref(LINE, number, self.store.put(source)[1])

    def write(self, value: RolloutRecord | bytes | None) -> None:
        data = value.to_json() if isinstance(value, RolloutRecord) else value
        self.log.append(Output(TOPIC, LINE.encode(), data, (), 0))


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Setup]:
    setup = Setup(tmp_path)
    yield setup
    setup.reader.stop()


def test_empty_topic_is_ready_and_serves_the_base(setup: Setup) -> None:
    assert not setup.readiness.report()[0]
    setup.reader.start()
    assert setup.caught_up.wait(5)
    assert setup.readiness.report() == (True, {"rollout": "ok"})
    assert setup.registry.state().stable == BASE


def test_only_the_newest_existing_record_is_applied(setup: Setup) -> None:
    versions = [setup.put_version(number) for number in (1, 2, 3)]
    for seq, ref in ((1, versions[0]), (3, versions[2]), (2, versions[1])):
        setup.write(rollout_record(seq, ref))
    setup.reader.start()
    assert setup.caught_up.wait(5)
    assert setup.engine.loads == [versions[2].version]


def test_later_record_is_applied(setup: Setup) -> None:
    setup.reader.start()
    assert setup.caught_up.wait(5)
    v1 = setup.put_version(1)
    setup.write(rollout_record(1, v1))
    assert setup.applied.wait(5)
    assert setup.registry.state().stable == v1


def test_topic_that_may_not_be_read_makes_the_replica_unready(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_reader, "RECONNECT_S", 0.01)
    reader = InMemoryLogReader(setup.log, [TOPIC])
    setup.open_reader = lambda: reader
    setup.reader.start()
    assert setup.caught_up.wait(5)
    reader.failure = NotPermitted("the principal may not read model.rollout: grant READ")
    deadline = time.monotonic() + 5
    while "grant READ" not in setup.readiness.report()[1]["rollout"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not setup.readiness.report()[0]
    setup.caught_up.clear()
    reader.failure = None
    assert setup.caught_up.wait(5)
    assert setup.readiness.report()[0]


def test_unreadable_record_becomes_a_dead_letter_and_blocks_none(setup: Setup) -> None:
    v1 = setup.put_version(1)
    setup.write(b"{not json")
    setup.write(None)
    setup.write(rollout_record(1, v1))
    setup.reader.start()
    assert setup.caught_up.wait(5)
    assert setup.registry.state().stable == v1
    dead = setup.log.records("dead.letters")
    assert [record.value for record in dead] == [b"{not json"]
    headers = dict(dead[0].headers)
    assert b"model.rollout" in headers.values()
    assert b"inference" in headers.values()


def test_unavailable_broker_is_retried(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.inference.rollout_reader.RECONNECT_S", 0.01)
    attempts: list[int] = []

    def open_at_third_attempt() -> LogReader:
        attempts.append(1)
        if len(attempts) < 3:
            raise BrokerUnavailable("unavailable")
        return InMemoryLogReader(setup.log, [TOPIC])

    setup.open_reader = open_at_third_attempt
    setup.reader.start()
    assert setup.caught_up.wait(5)
    assert len(attempts) == 3


def test_unexpected_error_is_fatal(setup: Setup) -> None:
    class Broken(InMemoryLogReader):
        def poll(self, timeout: float) -> list[Record]:
            raise ZeroDivisionError

    setup.open_reader = lambda: Broken(setup.log, [TOPIC])
    setup.reader.start()
    assert setup.fatal.wait(5)
    assert isinstance(setup.error, Fatal)


def test_fatal_error_of_the_reader_ends_the_process(setup: Setup) -> None:
    def open_reader() -> LogReader:
        raise Fatal("the log no longer holds the position")

    setup.open_reader = open_reader
    setup.reader.start()
    assert setup.fatal.wait(5)
    assert "no longer holds" in str(setup.error)


# --- without Kafka ------------------------------------------------------------------------------------------------


def without_kafka() -> LogReader:
    raise BrokerUnavailable("no broker answers")


def test_replica_without_kafka_serves_what_it_served_last(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And follows the log again once it can be read."""
    monkeypatch.setattr(rollout_reader, "FALLBACK_S", 0.0)
    monkeypatch.setattr(rollout_reader, "RECONNECT_S", 0.05)
    v1, v2 = setup.put_version(1), setup.put_version(2)
    setup.last.write(rollout_record(4, v1))
    read_log, setup.open_reader = setup.open_reader, without_kafka
    setup.reader.start()
    assert setup.caught_up.wait(5)
    assert setup.registry.state().stable == v1
    ready, checks = setup.readiness.report()
    assert ready and "record 4" in checks["rollout"] and "no broker answers" in checks["rollout"]
    setup.write(rollout_record(4, v1))
    setup.write(rollout_record(5, v2))
    setup.open_reader = read_log
    wait_until(lambda: setup.registry.state().stable == v2)
    assert setup.engine.loads == [v1.version, v2.version]
    wait_until(lambda: setup.last.read() == rollout_record(5, v2))


def test_last_record_waits_for_a_kafka_that_is_only_slow(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that was rolled back meanwhile must not serve again because a broker is a second late."""
    monkeypatch.setattr(rollout_reader, "RECONNECT_S", 0.05)
    v1 = setup.put_version(1)
    setup.last.write(rollout_record(4, v1))
    setup.write(rollout_record(5, BASE))
    attempts: list[None] = []

    def slow() -> LogReader:
        attempts.append(None)
        return without_kafka() if len(attempts) < 5 else InMemoryLogReader(setup.log, [TOPIC])

    setup.open_reader = slow
    setup.reader.start()
    assert setup.caught_up.wait(5)
    assert setup.registry.state().stable == BASE
    assert setup.engine.loads == []


def test_first_start_without_kafka_is_not_ready(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_reader, "FALLBACK_S", 0.0)
    monkeypatch.setattr(rollout_reader, "RECONNECT_S", 0.02)
    setup.open_reader = without_kafka
    setup.reader.start()
    assert not setup.caught_up.wait(0.3)


def test_missing_permission_is_not_an_outage(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_reader, "FALLBACK_S", 0.0)
    monkeypatch.setattr(rollout_reader, "RECONNECT_S", 0.02)
    setup.last.write(rollout_record(4, setup.put_version(1)))

    def forbidden() -> LogReader:
        raise NotPermitted("may not read model.rollout")

    setup.open_reader = forbidden
    setup.reader.start()
    assert not setup.caught_up.wait(0.3)
    assert setup.engine.loads == []


def test_last_record_is_tried_again_while_its_artifact_is_away(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_reader, "FALLBACK_S", 0.0)
    monkeypatch.setattr(rollout_reader, "RECONNECT_S", 0.02)
    v1 = setup.put_version(1)
    setup.last.write(rollout_record(4, v1))
    away = setup.folder / "away"
    (setup.folder / "store").rename(away)
    setup.open_reader = without_kafka
    setup.reader.start()
    assert setup.applied.wait(5)
    assert setup.registry.state().stable == BASE
    away.rename(setup.folder / "store")
    wait_until(lambda: setup.registry.state().stable == v1)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
