"""I5, I6: a trainer killed with -9 wherever a run can be goes on with the same run, and publishes one version: of the
dataset that the run began with, with the weights, to the last bit, of a run that nobody disturbed.

Real processes, Kafka, Redis and training of a tiny model. A seed picks where it is killed, and whether the service is
or only its run's process. The oracle's controls are in `test_trainer_controls`.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from services.trainer.child import ADAPTER, CONFIG, TUNING
from services.trainer.runs import RunConfig
from shared.adapters.artifacts import LocalArtifactStore
from shared.adapters.topics_job import create_topics
from tests.fault.extent import SEEDS
from tests.fault.trainer_kills import (
    PHASES,
    SLOWLY_S,
    Phase,
    kill_the_run,
    kill_the_service,
    plan,
    wait_for,
)
from tests.fault.trainer_oracle import Seen, complaints, weights_of
from tests.integration.service_process import ROOT, Service, running
from tests.trainer_stand import P, TrainerStand, until

KILLS = 10
"""And one more, after the version is in the log."""
SHORT = [phase for phase in PHASES if phase.name == "checkpoint half-written"]
"""Among all tests it is killed there, and after the version is in the log: each start costs seconds of imports."""


class Disturbed:
    """One stand, its run, and what was seen of it."""

    def __init__(self, stand: TrainerStand, dice: random.Random) -> None:
        self.stand, self.dice, self.seen, self.kills = stand, dice, Seen(), 0

    @property
    def runs(self) -> Path:
        return self.stand.folder / "data" / "trainer" / self.stand.line / "runs"

    def run(self) -> Path | None:
        return next(self.runs.glob("*"), None) if self.runs.exists() else None

    def kill_in(self, phase: Phase) -> None:
        with running("trainer", self.stand.folder, self.stand.env(phase.pause)) as service:
            wait_for(phase, self.run, self.dice)
            self._kill(service, alone=not phase.pause and self.dice.random() < 0.4)

    def kill_when_published(self) -> None:
        with running("trainer", self.stand.folder, self.stand.env("published")) as service:
            until(self.stand.trained, SLOWLY_S, "a version in the log")
            self._kill(service, alone=False)

    def _kill(self, service: Service, *, alone: bool) -> None:
        if not (alone and kill_the_run(service)):
            kill_the_service(service)
        self.kills += 1
        self.seen.look(self.runs)

    def judge(self, undisturbed: Path) -> list[str]:
        """After its end: against the same run, begun from the same table and left alone."""
        self.seen.look(self.runs)
        self.seen.versions = self.stand.trained()
        store = LocalArtifactStore(self.stand.artifacts)
        for one in self.seen.versions:
            self.seen.weights[one.ref.version] = weights_of(store.fetch(one.ref.uri, one.ref.digest))
        again = Seen()
        self.seen.uninterrupted = weights_of(self._left_alone(undisturbed) / ADAPTER)
        again.look(undisturbed / "runs")
        self.seen.dataset_again = "".join(again.datasets)
        return list(complaints(self.seen))

    def _left_alone(self, folder: Path) -> Path:
        """The folder of the run, done again by one process from its configuration and the table."""
        run = self.run()
        assert run is not None
        again = folder / "runs" / run.name
        again.mkdir(parents=True)
        shutil.copy(run / CONFIG, again)
        for table in self.runs.parent.glob("trainer.sqlite3*"):
            shutil.copy(table, folder)
        env = self.stand.env() | {"LOOPWRIGHT_DATA_DIR": str(folder / "data")}
        done = subprocess.run(
            [sys.executable, "-m", "services.trainer.train", str(again)],
            env=TUNING | dict(os.environ) | env,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return again


@pytest.mark.timeout(900)
def test_killed_wherever_it_can_be_a_run_publishes_one_version_of_the_weights_it_would_have_had(
    kafka: str,
    redis_url: str,
    tiny_model: Path,
    tmp_path: Path,
    fresh: str,
    rare_seed: int,
    record_property: Any,
) -> None:
    create_topics(kafka, P)
    stand = TrainerStand(kafka, redis_url, tiny_model, tmp_path / "killed", fresh)
    stand.folder.mkdir()
    disturbed = Disturbed(stand, random.Random(rare_seed))
    stand.send_world(users=30, each=2)
    for phase in plan(disturbed.dice, KILLS) if SEEDS > 1 else SHORT:
        disturbed.kill_in(phase)
        if disturbed.kills == 1:
            # What is said after the run began is for the next one.
            stand.send_more(users=3)
    disturbed.kill_when_published()
    with running("trainer", stand.folder, stand.env()):
        stand.published(SLOWLY_S)
    record_property("kills", disturbed.kills)
    assert disturbed.judge(tmp_path / "left alone") == []
    through = RunConfig.from_json((next(disturbed.runs.glob("*")) / CONFIG).read_text()).through
    assert dict(through) == {"0": 2}, "the batches that came later are none of its"
