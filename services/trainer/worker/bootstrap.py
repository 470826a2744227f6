"""Start and end of the processes that use the base: `pipeline.py`, `reproduce.py` and `gate_again.py`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
from transformers import logging as transformers_logging

from services.trainer.files import write_whole
from services.trainer.progress import Progress
from services.trainer.run.context import RunContext, RunFailed, RunStopped
from services.trainer.run.folder import CONFIG, CONTROL, FAILURE_REASON, ExitCode
from services.trainer.run.position import CONTROL_PREFIX
from services.trainer.run.run_table import RunConfig
from services.trainer.settings import TrainerSettings
from services.trainer.worker.launcher import NICENESS
from shared.adapters.redis import RedisCache
from shared.settings import load
from shared.telemetry import configure_logging

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RunProcess:
    """What a process that trains knows before it loads anything large."""

    folder: Path
    config: RunConfig
    settings: TrainerSettings
    progress: Progress
    stop: threading.Event

    def context(self) -> RunContext:
        """Load the tokenizer and return the run's context. Can fail like any stage; call it within `exit_code_of`."""
        return RunContext(self.folder, self.config, self.settings, self.progress, self.stop)


def start_process(service: str, progress_id: str = "{}") -> RunProcess:
    """Set up this process, and read the configuration from the folder that the first argument names.

    The process runs at low priority, and sets `stop` on SIGTERM.

    Args:
        service: Name of the process in the log.
        progress_id: Template of the run id in progress reports; `{}` stands for the run's id.

    """
    os.nice(NICENESS)
    folder = Path(sys.argv[1])
    settings = load(TrainerSettings)
    configure_logging(service, settings.log_level)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    config = RunConfig.from_json((folder / CONFIG).read_text(encoding="utf-8"))
    progress = Progress(
        RedisCache(settings.redis_url),
        config.line,
        progress_id.format(config.run_id),
        prefix=CONTROL_PREFIX if folder.name == CONTROL else "",
    )
    return RunProcess(folder, config, settings, progress, stop)


def exit_code_of(folder: Path, work: Callable[[], None]) -> ExitCode:
    """Execute `work` and return the process's exit code. Errors other than `RunFailed` and `RunStopped` are raised."""
    try:
        work()
    except RunFailed as failure:
        write_whole(folder / FAILURE_REASON, str(failure).encode())
        return ExitCode.FAILED
    except RunStopped as stopped:
        log.info("stopped", detail=str(stopped))
        return ExitCode.STOPPED
    return ExitCode.DONE
