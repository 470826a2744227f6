"""The stack that the demo runs on: all services, real Kafka, Redis and model, under `.loopwright/demo`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from deploy.local.errors import StackError
from deploy.local.kafka_jars import ensure_jars
from deploy.local.model import ensure_base_answers, ensure_base_model
from deploy.local.stack import LocalStack
from deploy.local.state_file import owner_of, read_record
from examples.demo.chats import AT_ONCE

PREPARED = Path(".loopwright")
ROOT = PREPARED / "demo"
SUMMARY = "summary.json"

SETTINGS = {
    # A fixed key, so that the same users are held out in every run. Only a demo may have one.
    "LOOPWRIGHT_DEMO": "true",
    "LOOPWRIGHT_PSEUDONYM_KEY": "the demo's own key, known to everybody",
    # All 32 chats at once are one batch, on all processors: while people chat, nothing trains.
    "LOOPWRIGHT_INFERENCE_THREADS": str(os.cpu_count() or 1),
    "LOOPWRIGHT_INFERENCE_MAX_BATCH": str(AT_ONCE),
    "LOOPWRIGHT_INFERENCE_BATCH_WAIT_MS": "60",
    # People at a terminal do not wait thirty seconds for a batch.
    "LOOPWRIGHT_PROCESSOR_BATCH_AGE_S": "3",
    # Of what the cast says 189 examples may train; the last few come while the run is being prepared.
    "LOOPWRIGHT_TRAINER_EXAMPLES": "185",
    "LOOPWRIGHT_TRAINER_USERS": "20",
}


def prepare(progress: Callable[[str], None]) -> None:
    """What is made once per machine, apart from the services. Raises `StackError`."""
    if not os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        ensure_jars(PREPARED / "kafka", progress)
    base = os.environ.get("LOOPWRIGHT_BASE_MODEL") or ensure_base_model(PREPARED, progress)
    ensure_base_answers(PREPARED, base, progress)


def clean(root: Path) -> None:
    """Every demo begins anew. Raises `StackError` if one is running."""
    owner = owner_of(root)
    if owner is not None:
        raise StackError(f"a demo already runs in {root} (process {owner}); stop it with `make down`.")
    shutil.rmtree(root, ignore_errors=True)


@contextmanager
def running(
    root: Path, *, keep: bool, progress: Callable[[str], None], settings: Mapping[str, str] = SETTINGS
) -> Iterator[dict[str, str]]:
    """The addresses of a stack that is ready. With `keep` it belongs to a process of its own and goes on afterwards."""
    clean(root)
    if not keep:
        with LocalStack(root, env=settings, prepared=PREPARED, progress=progress) as stack:
            yield stack.urls
        return
    command = [sys.executable, "-m", "deploy.local", "up", "--root", str(root), "--prepared", str(PREPARED)]
    if subprocess.run(command, env=os.environ | dict(settings), check=False).returncode != 0:
        raise StackError("the stack did not start; see the lines above")
    record = read_record(root)
    if record is None:
        raise StackError("the stack has stopped again; see its logs")
    yield {name: str(value) for name, value in record.items() if name not in ("state", "owner", "pids")}
