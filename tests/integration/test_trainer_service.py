"""The trainer as a process beside a real Kafka and Redis, training a tiny model for a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import redis
from safetensors import safe_open

from services.trainer.database import lock_folder
from services.trainer.dataset import data_card, snapshot
from services.trainer.erasure.redact_run import rows_of
from services.trainer.run.folder import GATE_ANSWERS
from services.trainer.versions.publish import SERVICE, VersionLog, transactional_id
from shared.adapters import redis_keys
from shared.adapters.artifacts_local import LocalArtifactStore
from shared.adapters.base_model import PinnedBase
from shared.adapters.kafka import KafkaLogReader, KafkaTransactionalPublisher
from shared.adapters.topic_admin import create_topics
from shared.errors import Fenced, Misconfigured
from shared.topics import DEAD_LETTERS
from tests.integration.service_process import running
from tests.trainer_fixture import PARTITIONS, TrainerLine


@pytest.fixture(scope="module")
def stand(
    kafka: str, redis_url: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> TrainerLine:
    create_topics(kafka, PARTITIONS)
    return TrainerLine(kafka, redis_url, tiny_model, tmp_path_factory.mktemp("trainer"), "integration")


@pytest.mark.timeout(400)
def test_batches_become_a_published_version_with_its_gate_report(stand: TrainerLine) -> None:
    stand.send_garbage()
    stand.send_corrections(users=30, each=2)
    with running("trainer", stand.folder, stand.env()):
        version = stand.wait_for_version(seconds=200)
        assert stand.train_now("c1", seconds=20).status == "refused"
    base, trained = stand.versions()
    assert base.ref.kind == "base"
    assert trained == version
    assert trained.number == 1
    assert trained.gate is not None
    assert trained.gate.gated_against == base.ref.version
    assert {"win_rate", "general_nll_rise"} <= {figure.name for figure in trained.gate.figures}
    assert trained.dataset is not None
    assert trained.dataset.holds(f"{stand.line}-0-1")
    assert trained.dataset.examples > 0
    _artifact_is_whole_and_says_no_path(stand)
    card = data_card.read(next(stand.folder.rglob(data_card.DATA_CARD)).parent)
    assert card is not None
    assert (card.digest, card.training.rows) == (trained.dataset.digest, trained.dataset.examples)
    assert card.tokens.all == trained.dataset.tokens
    assert card.replay.share is not None, "training has begun"
    shown = redis.Redis.from_url(stand.redis_url).get(redis_keys.run_progress(stand.line))
    assert json.loads(shown)["stage"] == "published"  # type: ignore[arg-type]
    assert [record.value for record in stand.read(DEAD_LETTERS.name)].count(stand.garbage) == 1


@pytest.mark.timeout(400)
def test_a_version_trained_again_is_the_same_bit_by_bit_and_its_lineage_is_told(stand: TrainerLine) -> None:
    if not stand.trained_versions():
        stand.send_corrections(users=30, each=2)
    with running("trainer", stand.folder, stand.env()) as trainer:
        version = stand.wait_for_version(seconds=200)
        name = version.ref.version
        told = trainer.http.get("/api/lineage", params={"version": name}).json()
        event = told["batches"][0]["responses"][0]["events"][0]["event_id"]
        up = trainer.http.get("/api/lineage", params={"event_id": event}).json()
        result = stand.reproduce("again", name, seconds=200)
    assert version.dataset is not None
    assert told["counts"]["events"] == version.dataset.examples
    assert told["reproducible"] is True
    assert [run["version"] for response in up["responses"] for run in response["runs"]] == [name]
    assert (result.status, "bit by bit" in result.message) == ("done", True), result.message
    assert stand.trained_versions() == [version], "nothing is published by it"
    assert list((stand.folder / "data").rglob("reproductions")) == [], "no word of its rows is left"


@pytest.mark.timeout(400)
def test_an_erased_users_words_are_in_no_file_of_the_trainer_and_its_version_is_named(
    stand: TrainerLine,
) -> None:
    """I11"""
    if not stand.trained_versions():
        stand.send_corrections(users=30, each=2)
        with running("trainer", stand.folder, stand.env()):
            stand.wait_for_version(seconds=200)
    (version,) = stand.trained_versions()
    folder = next(stand.folder.rglob("snapshot.json")).parent
    user = snapshot.read_rows(folder)[0].row.user_id
    with running("trainer", stand.folder, stand.env()):
        report = stand.erase(user, seconds=60)
        again = stand.reproduce("never", version.ref.version, seconds=60)
    assert again.status == "refused"
    assert "rows that it was trained on were erased" in again.message
    assert (report.versions, report.snapshots) == ((version.ref.version,), 1)
    left = {one.row.user_id for one in rows_of(folder)}
    assert left
    assert user not in left
    assert not (folder / GATE_ANSWERS).exists(), "it holds what users asked and corrected"
    table = stand.folder / "data" / "trainer" / stand.line / "trainer.sqlite3"
    assert f'"user_id":"{min(left)}"'.encode() in table.read_bytes()
    assert f'"user_id":"{user}"'.encode() not in table.read_bytes()
    assert stand.trained_versions() == [version], "nothing was trained anew, nor published again"


def _artifact_is_whole_and_says_no_path(stand: TrainerLine) -> None:
    version = stand.versions()[1]
    folder = LocalArtifactStore(stand.artifacts).fetch(version.ref.uri, version.ref.digest)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == stand.model.name
    for path in folder.iterdir():
        assert str(stand.model.parent).encode() not in path.read_bytes()
        assert b"Ravenport" not in path.read_bytes()
    with safe_open(folder / "adapter_model.safetensors", "np") as weights:
        changed = [name for name in weights.keys() if weights.get_tensor(name).any()]  # noqa: SIM118 - no mapping
    assert any("lora_B" in name for name in changed)


def test_a_second_trainer_of_the_line_fences_the_first_which_publishes_nothing_more(
    kafka: str, tmp_path: Path, fresh: str
) -> None:
    create_topics(kafka, PARTITIONS)
    base = PinnedBase(tmp_path, "tiny", "ab" * 32)
    first, second = (
        VersionLog(
            fresh,
            lambda topic: KafkaLogReader(kafka, "tests", [topic]),
            lambda: KafkaTransactionalPublisher(kafka, SERVICE, transactional_id(fresh)),
        )
        for _ in range(2)
    )
    with pytest.raises(Fenced, match=f"another trainer took over the line {fresh}: one trainer per line"):
        first.announce_base(base, 0)
    assert second.versions() == []
    assert second.announce_base(base, 0)
    assert not second.announce_base(base, 0)
    assert [version.ref for version in second.versions()] == [base.ref(fresh)]


def test_two_trainers_in_one_folder_are_refused(tmp_path: Path) -> None:
    held = lock_folder(tmp_path)
    with pytest.raises(Misconfigured, match="another trainer works in"):
        lock_folder(tmp_path)
    held.close()
    lock_folder(tmp_path).close()
