"""One of the processes that train a run together: `python -m services.trainer.worker.rank RUN_FOLDER`.

`training_group.py` starts them. Rank 0 alone uses the folder.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog
from torch import distributed
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from services.trainer.base.memory import is_out_of_memory
from services.trainer.run import disk_space
from services.trainer.run.context import RunFailed, RunStopped
from services.trainer.run.folder import ExitCode
from services.trainer.settings import TrainerSettings
from services.trainer.training.process_group import TIMEOUT, ProcessGroup, is_peer_lost, join
from services.trainer.training.train import follow, train
from services.trainer.worker import bootstrap
from services.trainer.worker.launcher import NICENESS
from shared.settings import load
from shared.telemetry import configure_logging

END: Final = "loopwright/end"
"""Key under which a process that ends early leaves its exit code for those on other machines."""
log = structlog.get_logger(__name__)


def lead(folder: Path, group: ProcessGroup) -> ExitCode:
    """Train as rank 0. Returns the exit code."""
    process = bootstrap.start_process("trainer-run")
    return bootstrap.exit_code_of(folder, lambda: train(process.context(), group))


def assist(group: ProcessGroup) -> ExitCode:
    """Train as another rank. Returns the exit code."""
    os.nice(NICENESS)
    settings = load(TrainerSettings)
    configure_logging(f"trainer-rank-{group.rank}", settings.log_level)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        follow(group, settings.base_model, stop)
    except RunFailed:
        return ExitCode.FAILED  # rank 0 fails for the same reason, and writes it
    except RunStopped:
        return ExitCode.STOPPED
    return ExitCode.DONE


def run_to_exit_code(store: Store, work: Callable[[], ExitCode]) -> ExitCode:
    """Execute `work` and return the exit code. Unexpected errors are raised."""
    try:
        code = work()
    except Exception as error:
        if is_out_of_memory(error):
            code = ExitCode.OUT_OF_MEMORY
        elif disk_space.is_disk_full_error(error):
            code = ExitCode.DISK_FULL
        elif is_peer_lost(error):
            return _end_of_peer(store, error)
        else:
            raise
        log.warning("rank_ended", exit_code=code.name, error=str(error)[:300])
    if code != ExitCode.DONE:
        store.set(END, str(int(code)))
    return code


def _end_of_peer(store: Store, error: Exception) -> ExitCode:
    """Return the exit code that another process has left, or `PEER_LOST`."""
    log.warning("peer_lost", error=str(error)[:300])
    try:
        return ExitCode(int(store.get(END))) if store.check([END]) else ExitCode.PEER_LOST
    except RuntimeError:  # the store is lost, too
        return ExitCode.PEER_LOST


def main() -> int:
    """Train as one of several processes and return the exit code."""
    store, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
    group = join(store)
    folder = Path(sys.argv[1])
    code = run_to_exit_code(store, lambda: lead(folder, group) if group.rank == 0 else assist(group))
    if code == ExitCode.DONE:
        distributed.destroy_process_group()
    return code


if __name__ == "__main__":
    sys.exit(main())
