"""What every process of the trainer's does first and last: a run's (`pipeline.py`), and one that trains again
(`reproduce.py`). How the service starts and stops them: `launcher.py`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog
from transformers import logging as transformers_logging

from services.trainer.files import write_whole
from services.trainer.progress import Progress
from services.trainer.run.context import RunFailed, RunStopped, RunContext
from services.trainer.run.folder import CONFIG, FAILURE_REASON, ExitCode
from services.trainer.run.run_table import RunConfig
from services.trainer.settings import TrainerSettings
from services.trainer.worker.launcher import PARENT_PID_VARIABLE
from shared.adapters.parent_death import die_with
from shared.adapters.redis import RedisCache
from shared.settings import load
from shared.telemetry import configure_logging

NICENESS = 10
"""Serving and the stream go first where a run shares their processors."""
log = structlog.get_logger(__name__)


def open_run(service: str, told_as: str = "{}") -> tuple[Path, RunConfig, Callable[[], RunContext]]:
    """Ties this process to its parent where one is named, and reads what it is to do from the folder named in its
    arguments. `service`: its name in the log; `told_as`: how progress names the run.

    Returns folder, configuration, and what opens the work, which may fail as any part of it: call it inside `ended`.
    """
    if PARENT_PID_VARIABLE in os.environ:
        die_with(int(os.environ[PARENT_PID_VARIABLE]))
    os.nice(NICENESS)
    folder = Path(sys.argv[1])
    settings = load(TrainerSettings)
    configure_logging(service, settings.log_level)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    config = RunConfig.from_json((folder / CONFIG).read_text(encoding="utf-8"))
    progress = Progress(RedisCache(settings.redis_url), config.line, told_as.format(config.run_id))
    return folder, config, partial(RunContext, folder, config, settings, progress, stop)


def exit_code_of(folder: Path, done: Callable[[], None]) -> int:
    """Does it, and says with which status the process is to end. Raises what is neither done, failed nor stopped."""
    try:
        done()
    except RunFailed as failure:
        write_whole(folder / FAILURE_REASON, str(failure).encode())
        return ExitCode.FAILED
    except RunStopped as stopped:
        log.info("stopped", detail=str(stopped))
        return ExitCode.STOPPED
    return 0
