"""Gate one version again: `python -m services.trainer.worker.gate_again FOLDER`.

FOLDER is laid out like a run's folder, with the run's snapshot, with a configuration that names the present stable
version, and with the version's own artifact in `original/`. `gate.json` is written last. Exit codes: `run/folder.py`.
"""

from __future__ import annotations

import sys

from services.trainer.files import write_whole
from services.trainer.run.context import RunContext
from services.trainer.run.folder import GATE_RESULT, ORIGINAL
from services.trainer.run.position import GATE
from services.trainer.worker import control_run
from services.trainer.worker.bootstrap import start_process
from services.trainer.worker.pipeline import run_to_exit_code


def gate_again(context: RunContext) -> None:
    """Evaluate the artifact against stable and write the report. Raises `RunFailed` or `RunStopped`.

    A control that the gate needs is trained in between.
    """
    from services.trainer.gate.stage import gate_adapter  # noqa: PLC0415 - importing torch takes seconds

    adapter, control = context.folder / ORIGINAL, control_run.adapter_of(context)
    report = gate_adapter(context, adapter, context.folder, control)
    if control is None and control_run.is_wanted(context, report):
        control_run.begin(context)
        control_run.train(context)
        report = gate_adapter(context, adapter, context.folder, control_run.adapter_of(context))
    write_whole(context.folder / GATE_RESULT, report.model_dump_json(indent=1, exclude_none=True).encode())


def main() -> int:
    """Gate the version and return the exit code."""
    process = start_process("trainer-gate-again", "gate again {}")
    return run_to_exit_code(process.folder, lambda: gate_again(process.context()), GATE)


if __name__ == "__main__":
    sys.exit(main())
