"""Build the dataset for an export or a dry run: `python -m services.trainer.worker.dataset_task FOLDER`.

The dataset may be large, so the service has it built in this process, and reads, erases and supervises meanwhile.

| file in FOLDER | content |
| --- | --- |
| `task.json` | what to do, written by the service |
| `stage` | what the process is doing, for the console |
| `result.json` | the result, written last |
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

import structlog

from services.trainer.database import open_read_only
from services.trainer.dataset import batch_table
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.filters import mark_check
from services.trainer.files import write_whole
from services.trainer.settings import TrainerSettings
from services.trainer.worker.launcher import NICENESS
from shared.settings import load
from shared.telemetry import configure_logging

TASK: Final = "task.json"
STAGE: Final = "stage"
RESULT: Final = "result.json"
TaskKind: TypeAlias = Literal["export", "dry_run"]
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DatasetTask:
    """What to do.

    Attributes:
        kind: What to make of the dataset.
        through: Highest batch number to read, by partition.
        now_ms: The service's time.
        new_examples: For a dry run: the number of usable examples that are new.
        prospects: For a dry run: whether a run starts without a command, and why.
        marks: Texts by which the base's prompts separate turns (`filters.mark_check`).

    """

    kind: TaskKind
    through: dict[str, int]
    now_ms: int
    new_examples: int = 0
    prospects: str = ""
    marks: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        """Write the task to a folder."""
        write_whole(folder / TASK, json.dumps(asdict(self)).encode())


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The result: whether it worked, the message for the operator, and the digest and size of an export."""

    done: bool
    message: str
    digest: str = ""
    records: int = 0


def execute(folder: Path, settings: TrainerSettings) -> None:
    """Execute the task in `folder`, and write its result."""
    task = DatasetTask(**json.loads((folder / TASK).read_bytes()))

    def report(stage: str) -> None:
        write_whole(folder / STAGE, stage.encode())

    report("building the dataset from what is collected")
    with closing(open_read_only(settings.folder)) as db:
        examples = batch_table.current_examples(db, task.through)
        if task.kind == "dry_run":
            from services.trainer.worker.dry_run import dry_run_message  # noqa: PLC0415 - imports scikit-learn

            message = dry_run_message(
                settings, examples, task.new_examples, task.prospects, mark_check(task.marks)
            )
            result = TaskResult(True, message)
        else:
            result = _export(task, settings, examples, report)
    write_whole(folder / RESULT, json.dumps(asdict(result)).encode())


def _export(
    task: DatasetTask, settings: TrainerSettings, examples: Iterable[Example], report: Callable[[str], None]
) -> TaskResult:
    from services.trainer.worker.export import export  # noqa: PLC0415 - imports scikit-learn

    try:
        exported = export(settings, examples, task.through, task.now_ms, report, unfit=mark_check(task.marks))
    except OSError as error:
        log.exception("export_failed")
        return TaskResult(
            False, f"cannot write to {settings.exports.resolve()}: {error.strerror}", records=-1
        )
    return TaskResult(bool(exported.digest), exported.message, exported.digest, exported.records)


def read_result(folder: Path) -> TaskResult | None:
    """Return the result in a folder, or None if there is none."""
    file = folder / RESULT
    return TaskResult(**json.loads(file.read_bytes())) if file.exists() else None


def main() -> None:
    """Execute the task and end. The process also ends on SIGTERM."""
    os.nice(NICENESS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = load(TrainerSettings)
    configure_logging("trainer-dataset", settings.log_level)
    execute(Path(sys.argv[1]), settings)


if __name__ == "__main__":
    main()
