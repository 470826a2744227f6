"""Run a module as a process that ends with the service: `python -m services.trainer.worker.child MODULE ARGUMENT`.

The modules import libraries for seconds before they do anything. If the service were killed meanwhile, such a process
would be left behind, so it is tied to the service before it imports anything.
"""

from __future__ import annotations

import os
import runpy
import sys

from shared.adapters.parent_death import die_with

PARENT_PID_VARIABLE = "LOOPWRIGHT_TRAINER_PARENT"
"""Environment variable with the process id of the service."""


def die_with_parent() -> None:
    """Tie this process to the one that started it, if `PARENT_PID_VARIABLE` names that."""
    if PARENT_PID_VARIABLE in os.environ:
        die_with(int(os.environ[PARENT_PID_VARIABLE]))


def main() -> None:
    """Tie this process to the service, then run the module that the first argument names."""
    die_with_parent()
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
