"""I6: a version is published at most once, only when complete, and its artifact never changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.trainer.core.recipe import Recipe
from services.trainer.files import write_whole
from services.trainer.run.folder import ARTIFACT
from services.trainer.run.run_table import RunConfig
from services.trainer.versions.model_card import write_artifact
from services.trainer.versions.publish import SERVICE, VersionLog, transactional_id
from shared.adapters.artifacts_local import LocalArtifactStore
from shared.adapters.base_model import PinnedBase
from shared.adapters.in_memory import InMemoryLog, InMemoryLogReader, InMemoryTransactionalPublisher
from shared.errors import BrokerUnavailable, Fenced
from shared.topics import MODEL_VERSIONS
from shared.versions import Figure, GateReport, ModelVersion
from tests.trainer_factories import LINE, dataset_ref

BASE = PinnedBase(Path("models/tiny"), "tiny", "ab" * 32)
REPORT = GateReport(
    verdict="passed",
    reasons=("better",),
    figures=(Figure(name="win_rate", n=31, value=0.9, low=0.75, high=0.97, bound=0.5, passed=True),),
    gated_against=BASE.ref(LINE).version,
)


def run(name: str) -> RunConfig:
    """Return the configuration of the run `name`."""
    return RunConfig(
        run_id=name,
        line=LINE,
        through={"0": 1},
        recipe=Recipe(),
        base="somewhere/on/this/machine",
        base_name=BASE.name,
        base_digest=BASE.digest,
        stable=BASE.ref(LINE),
        stable_run=None,
        created_ms=1_700_000_000_000,
    )


def artifact(folder: Path, config: RunConfig) -> Path:
    """Write an adapter and return the artifact made from it."""
    adapter = folder / "adapter"
    adapter.mkdir(parents=True)
    write_whole(adapter / "adapter_model.safetensors", config.run_id.encode())
    write_whole(adapter / "adapter_config.json", b'{"base_model_name_or_path": "tiny"}')
    return write_artifact(folder, config, dataset_ref(), REPORT)


class Line:
    """A line's log and artifact store. `versions()` opens the log as a trainer does."""

    def __init__(self, folder: Path) -> None:
        self.log = InMemoryLog()
        self.store = LocalArtifactStore(folder / "store")
        self.publishers: list[InMemoryTransactionalPublisher] = []

    def versions(self) -> VersionLog:
        def publisher() -> InMemoryTransactionalPublisher:
            self.publishers.append(InMemoryTransactionalPublisher(self.log, SERVICE, transactional_id(LINE)))
            return self.publishers[-1]

        return VersionLog(LINE, lambda topic: InMemoryLogReader(self.log, [topic]), publisher)

    def published(self) -> list[ModelVersion]:
        return [ModelVersion.from_json(record.value) for record in self.log.records(MODEL_VERSIONS.name)]


def test_run_is_published_once_however_often_it_is_tried(tmp_path: Path) -> None:
    line, config = Line(tmp_path), run("run-1")
    folder = artifact(tmp_path / "run", config)
    first = line.versions().publish(config, dataset_ref(), REPORT, folder, line.store)
    again = line.versions().publish(config, dataset_ref(), REPORT, folder, line.store)
    assert first == again
    assert [version.run_id for version in line.published()] == ["run-1"]
    assert first.number == 1
    assert line.store.fetch(first.ref.uri, first.ref.digest).exists()


def test_version_numbers_count_up(tmp_path: Path) -> None:
    line = Line(tmp_path)
    versions = line.versions()
    for name in ("run-1", "run-2"):
        versions.publish(run(name), dataset_ref(), REPORT, artifact(tmp_path / name, run(name)), line.store)
    assert [version.number for version in line.published()] == [1, 2]
    assert [version.ref.version.split("-")[0] for version in line.published()] == [f"{LINE}@v1", f"{LINE}@v2"]


def test_base_is_published_once(tmp_path: Path) -> None:
    line = Line(tmp_path)
    assert line.versions().announce_base(BASE, 0)
    assert not line.versions().announce_base(BASE, 0)
    assert [version.ref for version in line.published()] == [BASE.ref(LINE)]


def test_fenced_trainer_publishes_nothing_and_says_why(tmp_path: Path) -> None:
    line, config = Line(tmp_path), run("run-1")
    old = line.versions()
    line.versions()
    with pytest.raises(Fenced, match="one trainer per line"):
        old.publish(config, dataset_ref(), REPORT, artifact(tmp_path / "run", config), line.store)
    assert line.published() == []


def test_unknown_outcome_is_read_from_the_log_before_a_retry(tmp_path: Path) -> None:
    line, config = Line(tmp_path), run("run-1")
    versions = line.versions()
    folder = artifact(tmp_path / "run", config)
    line.publishers[0].failure = BrokerUnavailable("no answer")
    with pytest.raises(BrokerUnavailable):
        versions.publish(config, dataset_ref(), REPORT, folder, line.store)
    published = versions.publish(config, dataset_ref(), REPORT, folder, line.store)
    assert line.published() == [published]


def test_artifact_names_base_and_run_but_no_path(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "run", run("run-1"))
    assert folder.name == ARTIFACT
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "loopwright.json",
    ]
    for path in folder.iterdir():
        assert b"somewhere/on/this/machine" not in path.read_bytes()
        assert str(tmp_path).encode() not in path.read_bytes()
    card = (folder / "README.md").read_text()
    assert "run-1" in card
    assert "| win_rate | 31 | 0.900 | 0.750 to 0.970 |  | 0.500 |" in card


def test_same_run_gives_the_same_artifact(tmp_path: Path) -> None:
    store = LocalArtifactStore(tmp_path / "store")
    one, other = artifact(tmp_path / "a", run("run-1")), artifact(tmp_path / "b", run("run-1"))
    assert store.put(one) == store.put(other)
