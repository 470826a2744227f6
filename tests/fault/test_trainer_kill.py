"""I5, I6: a trainer killed with -9 at every stage of a run publishes one version, of the dataset the run began with.

Real processes, Kafka and training of a tiny model. The trainer stands still where the test wants it and is killed; its
run's process must die with it; the next one goes on. The same oracle catches a variant that does not read the log
before it publishes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.trainer.checkpoint_marks import COMPLETE
from services.trainer.child import GATE
from services.trainer.publish import VersionLog
from services.trainer.snapshot import MARK
from shared.adapters.topics_job import create_topics
from shared.versions import ModelVersion
from tests.integration.service_process import Service, running
from tests.trainer_parts import ref
from tests.trainer_stand import P, TrainerStand, until
from tests.unit.test_trainer_publish import REPORT, Line, artifact, run

SLOWLY_S = 150.0
"""A stage takes a few seconds; most of them are imports, which a loaded machine stretches."""


def complaints(versions: list[ModelVersion], digests: set[str]) -> Iterator[str]:
    """What is wrong with the versions of a line that had one run."""
    if len(versions) != 1:
        yield f"I6: {len(versions)} versions of one run: {[version.ref.version for version in versions]}"
    if len(digests) != 1:
        yield f"I5: datasets {sorted(digests)}"
    if any(version.dataset is None or version.dataset.digest not in digests for version in versions):
        yield "I5: a version of another dataset than its run's"


def kill(service: Service) -> None:
    """-9 to the service alone; its run's process must not outlive it."""
    children = _children_of(service.child.pid)
    service.child.kill()
    service.child.wait()
    until(lambda: not any(_lives(pid) for pid in children), 10, "the run's process dying with the trainer")


def _children_of(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in found.read_text().split()] if found.exists() else []


def _lives(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text() and os.getpid() != pid


@pytest.mark.timeout(600)
def test_killed_at_every_stage_the_same_run_publishes_one_version(
    kafka: str, redis_url: str, tiny_model: Path, tmp_path: Path, fresh: str
) -> None:
    create_topics(kafka, P)
    stand = TrainerStand(kafka, redis_url, tiny_model, tmp_path, fresh)
    stand.send_world(users=30, each=2)
    killed = []
    for pause, sign in (("snapshot", MARK), ("", f"checkpoints/*/{COMPLETE}"), ("gated", GATE)):
        with running("trainer", stand.folder, stand.env(pause)) as service:
            stand.reached(sign, seconds=SLOWLY_S)
            kill(service)
            killed.append(stand.digests())
    assert stand.trained() == []
    with running("trainer", stand.folder, stand.env("published")) as service:
        until(stand.trained, SLOWLY_S, "a version in the log")
        kill(service)
    stand.send_world(users=3, each=1, seed=2)
    with running("trainer", stand.folder, stand.env()):
        stand.published(SLOWLY_S)
    assert list(complaints(stand.trained(), stand.digests())) == []
    assert all(digests == stand.digests() for digests in killed)


def test_the_oracle_catches_a_trainer_that_does_not_read_the_log_before_it_publishes(tmp_path: Path) -> None:
    class Forgetful(VersionLog):
        def versions(self) -> list[ModelVersion]:
            return []

    line, config = Line(tmp_path), run("run-1")
    folder = artifact(tmp_path / "run", config)
    for _ in range(2):
        careful = line.versions()
        forgetful = Forgetful("assistant", careful._read, careful._open)
        forgetful.publish(config, ref(), REPORT, folder, line.store)
    assert list(complaints(line.published(), {ref().digest})) == [
        f"I6: 2 versions of one run: {[version.ref.version for version in line.published()]}"
    ]
