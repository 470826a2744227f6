"""The trainer as a process, with real Kafka and Redis, training a tiny model for a few steps."""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import redis
from safetensors import safe_open

from deploy.local.ports import HOST, choose_ports
from deploy.local.processes import Program, spawn, tail, terminate
from services.trainer.database import lock_folder
from services.trainer.dataset import data_card, snapshot_files
from services.trainer.erasure.redact_run import rows_of
from services.trainer.run.folder import GATE_ANSWERS
from services.trainer.versions.publish import SERVICE, VersionLog, transactional_id
from shared.adapters import redis_keys
from shared.adapters.artifacts_local import LocalArtifactStore
from shared.adapters.base_model import PinnedBase
from shared.adapters.kafka import KafkaLogReader, KafkaTransactionalPublisher
from shared.adapters.topic_admin import create_topics
from shared.errors import Fenced, Misconfigured
from shared.kafka_connection import KafkaConnection
from shared.topics import DEAD_LETTERS
from tests.integration.service_process import ROOT, running
from tests.trainer_fixture import PARTITIONS, TrainerLine, wait_until


@pytest.fixture(scope="module")
def trainer_line(
    kafka: str, redis_url: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> TrainerLine:
    create_topics(KafkaConnection(kafka), PARTITIONS)
    return TrainerLine(kafka, redis_url, tiny_model, tmp_path_factory.mktemp("trainer"), "integration")


@pytest.mark.timeout(400)
def test_batches_become_a_published_version(trainer_line: TrainerLine) -> None:
    trainer_line.send_garbage()
    trainer_line.send_corrections(users=30, each=2)
    with running("trainer", trainer_line.folder, trainer_line.env()):
        version = trainer_line.wait_for_version(seconds=200)
        assert trainer_line.train_now("c1", seconds=20).status == "refused"
    base, trained = trainer_line.versions()
    assert base.ref.kind == "base"
    assert trained == version
    assert trained.number == 1
    assert trained.gate is not None
    assert trained.gate.gated_against == base.ref.version
    assert {"win_rate", "general_nll_rise"} <= {figure.name for figure in trained.gate.figures}
    assert trained.dataset is not None
    assert trained.dataset.holds(f"{trainer_line.line}-0-1")
    assert trained.dataset.examples > 0
    _check_artifact(trainer_line)
    card = data_card.read(next(trainer_line.folder.rglob(data_card.DATA_CARD)).parent)
    assert card is not None
    assert (card.digest, card.training.rows) == (trained.dataset.digest, trained.dataset.examples)
    assert card.tokens.all == trained.dataset.tokens
    assert card.replay.share is not None, "known once training starts"
    progress = redis.Redis.from_url(trainer_line.redis_url).get(redis_keys.run_progress(trainer_line.line))
    assert json.loads(progress)["stage"] == "published"  # type: ignore[arg-type]
    assert [record.value for record in trainer_line.read(DEAD_LETTERS.name)].count(trainer_line.garbage) == 1


@pytest.mark.timeout(400)
def test_reproduced_version_is_equal_bit_by_bit(trainer_line: TrainerLine) -> None:
    if not trainer_line.trained_versions():
        trainer_line.send_corrections(users=30, each=2)
    with running("trainer", trainer_line.folder, trainer_line.env()) as trainer:
        version = trainer_line.wait_for_version(seconds=200)
        name = version.ref.version
        lineage = trainer.http.get("/api/lineage", params={"version": name}).json()
        event = lineage["batches"][0]["responses"][0]["events"][0]["event_id"]
        trace = trainer.http.get("/api/lineage", params={"event_id": event}).json()
        result = trainer_line.reproduce("again", name, seconds=200)
    assert version.dataset is not None
    assert lineage["counts"]["events"] == version.dataset.examples
    assert lineage["reproducible"] is True
    assert [run["version"] for response in trace["responses"] for run in response["runs"]] == [name]
    assert (result.status, "bit by bit" in result.message) == ("done", True), result.message
    assert trainer_line.trained_versions() == [version], "a reproduction publishes nothing"
    assert list((trainer_line.folder / "data").rglob("reproductions")) == [], (
        "its copy of the rows is deleted"
    )


@pytest.mark.timeout(400)
def test_version_is_gated_again_and_published_with_the_new_report(trainer_line: TrainerLine) -> None:
    if not trainer_line.trained_versions():
        trainer_line.send_corrections(users=30, each=2)
    with running("trainer", trainer_line.folder, trainer_line.env()):
        version = trainer_line.wait_for_version(seconds=200)
        result = trainer_line.gate_again("gate", version.ref.version, seconds=200)
    assert result.status == "done", result.message
    first, second = trainer_line.trained_versions()
    assert first.gate is not None
    assert second.gate is not None
    assert (first.gate.number, second.gate.number) == (1, 2)
    assert second.model_copy(update={"gate": first.gate}) == first
    assert [figure.model_dump() for figure in second.gate.figures] == [
        figure.model_dump() for figure in first.gate.figures
    ], "the same items, the same versions, the same answers"
    assert list((trainer_line.folder / "data").rglob("gates")) == [], "its copy of the rows is deleted"


@pytest.mark.timeout(400)
def test_erased_users_text_is_in_no_file_of_the_trainer(trainer_line: TrainerLine) -> None:
    """I11: and the erasure report names the version that was trained on it."""
    if not trainer_line.trained_versions():
        trainer_line.send_corrections(users=30, each=2)
        with running("trainer", trainer_line.folder, trainer_line.env()):
            trainer_line.wait_for_version(seconds=200)
    published = trainer_line.trained_versions()
    version = published[-1]
    folder = next(trainer_line.folder.rglob("snapshot.json")).parent
    user = snapshot_files.read_rows(folder)[0].row.user_id
    with running("trainer", trainer_line.folder, trainer_line.env()):
        report = trainer_line.erase(user, seconds=60)
        result = trainer_line.reproduce("never", version.ref.version, seconds=60)
    assert result.status == "refused"
    assert "rows that it was trained on were erased" in result.message
    assert (report.versions, report.snapshots) == ((version.ref.version,), 1)
    remaining = {grouped.row.user_id for grouped in rows_of(folder)}
    assert remaining
    assert user not in remaining
    assert not (folder / GATE_ANSWERS).exists(), "it contains users' questions and corrections"
    database = trainer_line.folder / "data" / "trainer" / trainer_line.line / "trainer.sqlite3"
    assert f'"user_id":"{min(remaining)}"'.encode() in database.read_bytes()
    assert f'"user_id":"{user}"'.encode() not in database.read_bytes()
    assert trainer_line.trained_versions() == published, "nothing was trained or published again"


def _check_artifact(trainer_line: TrainerLine) -> None:
    version = trainer_line.versions()[1]
    folder = LocalArtifactStore(trainer_line.artifacts).fetch(version.ref.uri, version.ref.digest)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == trainer_line.model.name
    for path in folder.iterdir():
        assert str(trainer_line.model.parent).encode() not in path.read_bytes()
        assert b"Ravenport" not in path.read_bytes()
    with safe_open(folder / "adapter_model.safetensors", "np") as weights:
        changed = [name for name in weights.keys() if weights.get_tensor(name).any()]  # noqa: SIM118 - no mapping
    assert any("lora_B" in name for name in changed)


def test_second_trainer_of_a_line_fences_the_first(kafka: str, tmp_path: Path, fresh: str) -> None:
    create_topics(KafkaConnection(kafka), PARTITIONS)
    base = PinnedBase(tmp_path, "tiny", "ab" * 32)
    first, second = (
        VersionLog(
            fresh,
            lambda topic: KafkaLogReader(KafkaConnection(kafka), "tests", [topic]),
            lambda: KafkaTransactionalPublisher(KafkaConnection(kafka), SERVICE, transactional_id(fresh)),
        )
        for _ in range(2)
    )
    with pytest.raises(Fenced, match=f"another trainer took over line {fresh}, so this one ends"):
        first.announce_base(base, 0)
    assert second.versions() == []
    assert second.announce_base(base, 0)
    assert not second.announce_base(base, 0)
    assert [version.ref for version in second.versions()] == [base.ref(fresh)]


@pytest.mark.timeout(200)
def test_second_trainer_stands_by_until_the_first_is_killed(
    kafka: str, redis_url: str, tiny_model: Path, tmp_path: Path, fresh: str
) -> None:
    create_topics(KafkaConnection(kafka), PARTITIONS)
    folders = [tmp_path / "first", tmp_path / "second"]
    lines = [TrainerLine(kafka, redis_url, tiny_model, folder, fresh) for folder in folders]
    with running("trainer", folders[0], lines[0].env()) as first:
        port = choose_ports({"trainer": 0})["trainer"]
        env = lines[1].env() | {"LOOPWRIGHT_TRAINER_PORT": str(port)}
        log = folders[1] / "trainer.log"
        argv = [sys.executable, "-m", "services.trainer"]
        child = spawn(Program("trainer", argv, env, cwd=ROOT), folder=folders[1], log=log)

        def line_check() -> str:
            with suppress(httpx.TransportError):
                return str(httpx.get(f"http://{HOST}:{port}/readyz").json()["checks"]["line"])
            return ""

        try:
            wait_until(lambda: "waiting until no other trainer" in line_check(), 40, "the standby")
            assert lines[0].train_now("c1", seconds=20).status == "refused", "the first one works"
            assert (first.child.poll(), child.poll()) == (None, None)
            os.kill(first.child.pid, signal.SIGKILL)
            wait_until(lambda: line_check() == f"ok: {fresh}", 40, "the successor")
            assert lines[0].train_now("c2", seconds=20).status == "refused", "the second one works"
            assert child.poll() is None
        except BaseException:
            print(tail(log, 40))
            raise
        finally:
            terminate(child, seconds=20)


def test_two_trainers_in_one_folder_are_refused(tmp_path: Path) -> None:
    lock = lock_folder(tmp_path)
    with pytest.raises(Misconfigured, match="another trainer uses"):
        lock_folder(tmp_path)
    lock.close()
    lock_folder(tmp_path).close()
