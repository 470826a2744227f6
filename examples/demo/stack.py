"""The demo's stack: all services with a real Kafka, Redis and model, below `.loopwright/demo`."""

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
from deploy.local.state_file import owner_pid, read_state
from examples.demo.chats import PARALLEL_CHATS

PREPARED = Path(".loopwright")
ROOT = PREPARED / "demo"
SUMMARY = "summary.json"

SETTINGS = {
    # A fixed key, so that every run holds out the same users. It is allowed only in demo mode.
    "LOOPWRIGHT_DEMO": "true",
    "LOOPWRIGHT_PSEUDONYM_KEY": "the demo's own key, known to everybody",
    # All parallel chats form one batch. Its threads wait for each other after each operation, so one that shares its
    # processor with another program stops all of them: half of the processors stay free for other programs.
    "LOOPWRIGHT_INFERENCE_THREADS": str(max(1, (os.cpu_count() or 1) // 2)),
    "LOOPWRIGHT_INFERENCE_MAX_BATCH": str(PARALLEL_CHATS),
    # Default: 30 seconds, too long for a person at a terminal.
    "LOOPWRIGHT_PROCESSOR_BATCH_AGE_S": "3",
    # Its few users could not decide about a canary.
    "LOOPWRIGHT_ROLLOUT_POLICY": "direct",
    # The users' feedback gives 189 usable examples; the last ones arrive while the run is being prepared.
    "LOOPWRIGHT_TRAINER_EXAMPLES": "185",
    "LOOPWRIGHT_TRAINER_USERS": "20",
}


def prepare(progress: Callable[[str], None]) -> None:
    """Download and prepare what is needed once per machine.

    Raises:
        StackError: if a step fails.

    """
    if not os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        ensure_jars(PREPARED / "kafka", progress)
    base = os.environ.get("LOOPWRIGHT_BASE_MODEL") or ensure_base_model(PREPARED, progress)
    ensure_base_answers(PREPARED, base, progress)


def clean(root: Path) -> None:
    """Delete the data of an earlier run.

    Raises:
        StackError: if a stack is still running in `root`.

    """
    owner = owner_pid(root)
    if owner is not None:
        raise StackError(f"a stack is already running in {root} (process {owner}). Stop it with `make down`.")
    shutil.rmtree(root, ignore_errors=True)


@contextmanager
def running(
    root: Path, *, keep: bool, progress: Callable[[str], None], settings: Mapping[str, str] = SETTINGS
) -> Iterator[dict[str, str]]:
    """Start a stack and yield its addresses once it is ready; stop it afterwards.

    With `keep`, a background process runs the stack and keeps it running.

    Raises:
        StackError: if the stack does not start.

    """
    clean(root)
    if not keep:
        with LocalStack(root, env=settings, prepared=PREPARED, progress=progress) as stack:
            yield stack.urls
        return
    command = [sys.executable, "-m", "deploy.local", "up", "--root", str(root), "--prepared", str(PREPARED)]
    if subprocess.run(command, env=os.environ | dict(settings), check=False).returncode != 0:
        raise StackError("the stack did not start; see the messages above")
    state = read_state(root)
    if state is None:
        raise StackError(f"the stack has stopped; see its logs in {root / 'run' / 'logs'}")
    yield {name: str(value) for name, value in state.items() if name not in ("state", "owner", "pids")}
