"""Train a run with several processes: `python -m services.trainer.worker.training_group RUN_FOLDER`.

This process is torchrun's agent, as `accelerate launch` starts it. It starts one process for each GPU of this machine
(`rank.py`), and stops all of them if one fails. They end with it, and it ends with the service. So the service sees one
process, whose exit code says how training ended (`run/folder.py`). On other machines `join.py` starts it, with an empty
folder.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from accelerate.commands.launch import launch_command, launch_command_parser  # type: ignore[import-untyped]
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from services.trainer.run import batch_sizes, disk_space
from services.trainer.run.folder import ExitCode
from services.trainer.run.position import position_of
from services.trainer.settings import TrainerSettings
from services.trainer.training.process_group import is_peer_lost
from services.trainer.worker.child import PARENT_PID_VARIABLE
from shared.settings import load
from shared.telemetry import configure_logging

REPORTED: Final = (
    ExitCode.FAILED,
    ExitCode.OUT_OF_MEMORY,
    ExitCode.MEMORY_EXHAUSTED,
    ExitCode.DISK_FULL,
    ExitCode.STOPPED,
)
"""Exit codes by which a process reports how the run ended."""
UNEXPECTED_ERROR: Final = 1
STOPPED_BY_AGENT: Final = -signal.SIGTERM
"""Exit code of a process that was stopped while it was ending: its own handler of the signal is gone by then."""
TORCHRUN_PREFIX: Final = "PET_"
"""Beginning of variables from which torchrun takes arguments. Kubeflow sets them for the processes of its own job."""
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class End:
    """How one process ended.

    Attributes:
        code: Its exit code; negative for a signal.
        second: When, in seconds.

    """

    code: int
    second: int


def cause_of_end(ends: Collection[End]) -> int:
    """Return the exit code that says why training ended, given how the processes that failed ended.

    When one process fails, the others fail too: they lose the connection to it, or are stopped by the agent. So what a
    process reports counts most, then how the first one ended, then a signal before an error.
    """
    reported = [end for end in ends if end.code in REPORTED]
    if reported:
        return min(reported, key=lambda end: REPORTED.index(ExitCode(end.code))).code
    causes = [end for end in ends if end.code not in {ExitCode.PEER_LOST, STOPPED_BY_AGENT}]
    if causes:
        return min(causes, key=lambda end: (end.second, end.code)).code
    return max(end.code for end in ends)


def without_other_machines(code: int) -> int:
    """Return the exit code of a run on one machine, where a lost connection without another cause is an error."""
    return UNEXPECTED_ERROR if code == ExitCode.PEER_LOST else code


def launch(settings: TrainerSettings, folder: str) -> int:
    """Start the processes of this machine, wait until they end, and return the exit code of the run's process."""
    host, _, port = settings.rdzv_endpoint.rpartition(":")
    several_machines = ("--main_process_ip", host, "--main_process_port", port)
    arguments = launch_command_parser().parse_args(
        [
            "--multi_gpu",  # on a CPU, too: the processes decide
            *("--num_processes", str(settings.world_size)),
            *("--num_machines", str(settings.nnodes)),
            *("--machine_rank", str(settings.node_rank)),
            *(several_machines if settings.nnodes > 1 else ("--main_process_port", "0")),
            *("--mixed_precision", "no"),
            *("--dynamo_backend", "no"),
            "--module",
            *("services.trainer.worker.child", "services.trainer.worker.rank", folder),
        ]
    )
    arguments.signals_to_handle = signal.SIGTERM.name
    for name in [name for name in os.environ if name.startswith(TORCHRUN_PREFIX)]:
        del os.environ[name]
    os.environ[PARENT_PID_VARIABLE] = str(os.getpid())
    try:
        launch_command(arguments)
    except ChildFailedError as error:
        return cause_of_end([End(one.exitcode, one.timestamp) for one in error.failures.values()])
    except SignalException:
        return ExitCode.STOPPED
    except Exception as error:
        if not is_peer_lost(error):
            raise
        log.warning("machines_did_not_meet", error=str(error)[:300])
        return ExitCode.PEER_LOST
    return ExitCode.DONE


def main() -> int:
    """Train and return the exit code. Ends by the same signal as the process that ended training, if it was one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings, folder = load(TrainerSettings), sys.argv[1]
    configure_logging("trainer-group", settings.log_level)
    end = launch(settings, folder)
    if settings.nnodes == 1:
        end = without_other_machines(end)
    log.info("training_ended", exit_code=end)
    if settings.node_rank == 0:
        if end == ExitCode.OUT_OF_MEMORY:
            return batch_sizes.handle_out_of_memory(
                Path(folder), position_of(Path(folder)), "see the error above"
            )
        if end == ExitCode.DISK_FULL:
            disk_space.free_space(Path(folder))
    if end < 0:
        if -end != signal.SIGKILL:
            signal.signal(-end, signal.SIG_DFL)
        os.kill(os.getpid(), -end)
    return end


if __name__ == "__main__":
    sys.exit(main())
