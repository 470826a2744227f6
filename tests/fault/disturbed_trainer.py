"""A real trainer's line whose run is disturbed, and the same run left alone beside it."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from services.trainer.run.folder import ADAPTER, CONFIG
from services.trainer.worker.launcher import TUNING
from shared.adapters.artifacts_local import LocalArtifactStore
from tests.fault.trainer_kills import SLOWLY_S, Phase, kill_the_run, kill_the_service, wait_for
from tests.fault.trainer_oracle import Seen, complaints, weights_of
from tests.integration.service_process import ROOT, Service, running
from tests.trainer_fixture import TrainerStand, until

HOWS = ("-9", "-9 to the run", "in order")


class Disturbed:
    """One stand, its run, and what was seen of it."""

    def __init__(self, stand: TrainerStand, dice: random.Random) -> None:
        self.stand, self.dice, self.seen, self.kills = stand, dice, Seen(), 0

    @property
    def runs(self) -> Path:
        return self.stand.folder / "data" / "trainer" / self.stand.line / "runs"

    def run(self) -> Path | None:
        return next(self.runs.glob("*"), None) if self.runs.exists() else None

    def end_in(self, phase: Phase, hows: Sequence[str] = HOWS) -> None:
        with running("trainer", self.stand.folder, self.stand.env(phase.pause)) as service:
            wait_for(phase, self.run, self.dice)
            self.end(service, "-9" if phase.pause else self.dice.choice(hows))

    def kill_when_published(self) -> None:
        with running("trainer", self.stand.folder, self.stand.env("published")) as service:
            until(self.stand.trained, SLOWLY_S, "a version in the log")
            self.end(service, "-9")

    def end(self, service: Service, how: str) -> None:
        """`-9` to the service or (where there is one) to its run's process alone, or `in order`, as by Ctrl-C."""
        if how == "in order":
            service.child.terminate()
            service.child.wait()
        elif not (how == "-9 to the run" and kill_the_run(service)):
            kill_the_service(service)
        self.kills += how != "in order"
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
            [sys.executable, "-m", "services.trainer.worker.pipeline", str(again)],
            env=TUNING | dict(os.environ) | env,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return again
