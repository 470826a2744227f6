"""A real trainer whose run is interrupted, and the same run without interruptions for comparison."""

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
from tests.fault.trainer_oracle import Observations, violations, weights_of
from tests.fault.trainer_phases import STAGE_S, Phase, kill_run, kill_service, wait_for
from tests.integration.service_process import ROOT, Service, running
from tests.trainer_fixture import TrainerLine, wait_until

ENDINGS = ("kill service", "kill run", "graceful")


class DisturbedTrainer:
    """A trainer, its run, and the observations of it."""

    def __init__(self, trainer: TrainerLine, rng: random.Random) -> None:
        self.trainer, self.rng, self.observations, self.kills = trainer, rng, Observations(), 0

    @property
    def runs(self) -> Path:
        return self.trainer.folder / "data" / "trainer" / self.trainer.line / "runs"

    def run(self) -> Path | None:
        return next(self.runs.glob("*"), None) if self.runs.exists() else None

    def interrupt_in(self, phase: Phase, endings: Sequence[str] = ENDINGS) -> None:
        """Start the trainer and end it at a random moment of this phase."""
        with running("trainer", self.trainer.folder, self.trainer.env(phase.pause)) as service:
            wait_for(phase, self.run, self.rng)
            self.end(service, "kill service" if phase.pause else self.rng.choice(endings))

    def kill_when_published(self) -> None:
        """Start the trainer and kill it once its version is in the log."""
        with running("trainer", self.trainer.folder, self.trainer.env("published")) as service:
            wait_until(self.trainer.trained_versions, STAGE_S, "a version in the log")
            self.end(service, "kill service")

    def end(self, service: Service, ending: str) -> None:
        """Kill the service or only its run's process (if there is one), or stop the service gracefully."""
        if ending == "graceful":
            service.child.terminate()
            service.child.wait()
        elif not (ending == "kill run" and kill_run(service)):
            kill_service(service)
        self.kills += ending != "graceful"
        self.observations.observe(self.runs)

    def judge(self, undisturbed: Path) -> list[str]:
        """Return the violations, compared with the same run from the same table without interruptions."""
        self.observations.observe(self.runs)
        self.observations.versions = self.trainer.trained_versions()
        store = LocalArtifactStore(self.trainer.artifacts)
        for version in self.observations.versions:
            self.observations.weights[version.ref.version] = weights_of(
                store.fetch(version.ref.uri, version.ref.digest)
            )
        again = Observations()
        self.observations.undisturbed_weights = weights_of(self._run_undisturbed(undisturbed) / ADAPTER)
        again.observe(undisturbed / "runs")
        self.observations.retaken_dataset = "".join(again.datasets)
        return list(violations(self.observations))

    def _run_undisturbed(self, folder: Path) -> Path:
        """Repeat the run in one process from its configuration and the table. Return its folder."""
        run = self.run()
        assert run is not None
        again = folder / "runs" / run.name
        again.mkdir(parents=True)
        shutil.copy(run / CONFIG, again)
        for table in self.runs.parent.glob("trainer.sqlite3*"):
            shutil.copy(table, folder)
        env = self.trainer.env() | {"LOOPWRIGHT_DATA_DIR": str(folder / "data")}
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
