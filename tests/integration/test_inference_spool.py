"""I12: spooled records survive kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from services.inference.response_publisher import SpoolSender
from services.inference.spool import Spool
from shared.adapters.in_memory import InMemoryLog, InMemoryPublisher
from shared.telemetry import Readiness

ROOT = Path(__file__).resolve().parents[2]


def test_records_spooled_before_kill_9_are_sent_after_restart(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("inference_spooler.py")), str(path)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) == 200:
                break
        child.send_signal(signal.SIGKILL)
        last = max([200, *(int(line) for line in child.stdout.read().split("\n")[:-1] if line)])
    log = InMemoryLog()
    spool = Spool(path, 1 << 26)
    sender = SpoolSender(spool, InMemoryPublisher(log, "inference"), Readiness())
    sender.start()
    sender.stop(20)
    assert len(spool) == 0
    spool.close()
    arrived = {dict(record.headers)["ce_id"].decode() for record in log.records("chat.responses")}
    assert {f"r{number}" for number in range(last + 1)} <= arrived
