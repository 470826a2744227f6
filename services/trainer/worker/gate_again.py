"""Gate one version again: `python -m services.trainer.worker.gate_again FOLDER`.

FOLDER is laid out like a run's folder, with the run's snapshot, with a configuration that names the present stable
version and the batches collected until now, and with the version's own artifact in `original/`. The held-out rows are
read from these batches again, so what held-out users have said since the version's gate before counts as well; the rows
that trained stay. `gate.json` is written last. Exit codes: `run/folder.py`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence, Set
from contextlib import closing
from pathlib import Path

import structlog

from services.trainer.database import open_read_only
from services.trainer.dataset import batch_table, snapshot_files
from services.trainer.dataset.snapshot import held_out_rows
from services.trainer.dataset.snapshot_files import HELDOUT_ROWS
from services.trainer.dataset.votes import ChangeRule
from services.trainer.files import write_whole
from services.trainer.run.context import RunContext
from services.trainer.run.folder import CONTROL, GATE_REPORT, GATE_RESULT, ORIGINAL
from services.trainer.run.position import GATE
from services.trainer.worker import control_run
from services.trainer.worker.bootstrap import start_process
from services.trainer.worker.pipeline import run_to_exit_code, train_adapter
from services.trainer.worker.row_checks import RowChecks
from shared.versions import GateReport

EVALUATED_BEFORE = "evaluated-before.json"
"""Identities of the held-out rows of the version's gate before: a process that starts again knows which are new."""
log = structlog.get_logger(__name__)


def gate_again(context: RunContext) -> None:
    """Evaluate the artifact against stable and write the report. Raises `RunFailed` or `RunStopped`.

    A control that the gate needs is trained in between.
    """
    from services.trainer.gate.held_out_items import held_out_items  # noqa: PLC0415 - imports scikit-learn
    from services.trainer.gate.stage import gate_adapter  # noqa: PLC0415 - importing torch takes seconds

    before = read_held_out(context)
    adapter, control = context.folder / ORIGINAL, control_run.adapter_of(context)
    report = gate_adapter(context, adapter, context.folder, control)
    if control is None and control_run.is_wanted(context, report):
        if not snapshot_files.is_complete(context.folder / CONTROL):
            control_run.begin(context)
        train_adapter(control_run.context_of(context))
        report = gate_adapter(context, adapter, context.folder, control_run.adapter_of(context))
    report = with_new_items(report, held_out_items(context).voting_rows(), before)
    _write_reasons(context.folder, report)
    write_whole(context.folder / GATE_RESULT, report.model_dump_json(indent=1, exclude_none=True).encode())


def read_held_out(context: RunContext) -> frozenset[str]:
    """Replace the held-out rows of the folder with those of all batches that the configuration names.

    The checks are those of a snapshot. Returns the identities of the rows before. May be repeated.
    """
    folder, config, recipe = context.folder, context.config, context.config.recipe
    if not (folder / EVALUATED_BEFORE).exists():
        rows = snapshot_files.read_rows(folder, HELDOUT_ROWS)
        write_whole(folder / EVALUATED_BEFORE, json.dumps([one.row.identity for one in rows]).encode())
    before = frozenset(json.loads((folder / EVALUATED_BEFORE).read_bytes()))
    checks = RowChecks(context)
    with closing(open_read_only(context.trainer_folder)) as db:
        held_out = held_out_rows(
            config.line,
            batch_table.current_examples(db, config.through, config.released),
            unfit=checks.why_unfit,
            comments=recipe.comment_mode,
            change_rule=ChangeRule.of(recipe),
            max_tokens=checks.longest,
        )
    write_whole(folder / HELDOUT_ROWS, snapshot_files.to_parquet(held_out))
    new = sum(one.row.identity not in before for one in held_out)
    log.info("held_out_rows_read", rows=len(held_out), new=new, before=len(before))
    return before


def with_new_items(report: GateReport, items: Sequence[Sequence[str]], before: Set[str]) -> GateReport:
    """Return the report with the number of items that contain a row which is not in `before`, also as a reason."""
    new = sum(not before >= set(rows) for rows in items)
    reason = f"{new} of the {len(items)} items are from feedback since the version's last gate"
    return report.model_copy(update={"new_items": new, "reasons": (*report.reasons, reason)})


def _write_reasons(folder: Path, report: GateReport) -> None:
    """Write the report with texts again, with the reasons and numbers that it lacks."""
    from services.trainer.gate.stage import write_report  # noqa: PLC0415 - importing torch takes seconds

    full = json.loads((folder / GATE_REPORT).read_bytes())
    write_report(folder, full | {"report": report.model_dump(mode="json")})


def main() -> int:
    """Gate the version and return the exit code."""
    process = start_process("trainer-gate-again", "gate again {}")
    return run_to_exit_code(process.folder, lambda: gate_again(process.context()), GATE)


if __name__ == "__main__":
    sys.exit(main())
