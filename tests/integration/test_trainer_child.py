"""Processes of the trainer end with it, also while they are still importing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.fault.trainer_phases import is_alive
from tests.integration.service_process import ROOT
from tests.trainer_fixture import wait_until

KILLED_SERVICE = """
import os, pathlib, signal, sys
from services.trainer.worker import launcher
folder = pathlib.Path(sys.argv[1])
print(launcher._start("slow_import", folder, folder / "log", "cpu").pid, flush=True)
while not (folder / "importing").exists():
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""
SLOW_IMPORT = """
import pathlib, sys, time
(pathlib.Path(sys.argv[1]) / "importing").touch()
time.sleep(600)
"""


def test_process_that_is_importing_dies_with_the_trainer(tmp_path: Path) -> None:
    (tmp_path / "slow_import.py").write_text(SLOW_IMPORT)
    service = subprocess.run(
        [sys.executable, "-c", KILLED_SERVICE, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"},
        stdout=subprocess.PIPE,
        check=False,
        timeout=60,
    )
    child = int(service.stdout)
    wait_until(lambda: not is_alive(child), 10, "the end of the process")
