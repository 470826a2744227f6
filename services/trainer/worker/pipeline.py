"""Execute the next part of a run: `python -m services.trainer.worker.pipeline RUN_FOLDER`.

A run has two parts, each in a process of its own, so that the gate starts with all memory that training used: snapshot
and training, then gate and artifact. If several processes train, the first part ends before training. If the gate needs
a control (`control_run.py`), it ends there; the control is trained, and the gate uses its stored answers. A stage is
skipped if its result exists: `snapshot.json`, `adapter/`, `gate.json` (written last, after `artifact/`). So a process
killed at any moment loses at most the work since its newest checkpoint, and never takes a second snapshot. Exit codes:
`run/folder.py`.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

import structlog

from services.trainer.base import dtype
from services.trainer.base.memory import is_out_of_memory
from services.trainer.database import open_read_only
from services.trainer.dataset import batch_table, data_card, snapshot, snapshot_files
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.chat_endpoint import EndpointConfig
from services.trainer.dataset.comment_rewriter import rewrites_for
from services.trainer.dataset.rewrite_cache import Rewrite
from services.trainer.dataset.votes import ChangeRule
from services.trainer.files import write_whole
from services.trainer.run import batch_sizes, disk_space
from services.trainer.run.context import RunContext, RunFailed, trained_questions
from services.trainer.run.folder import ADAPTER, CHECKPOINTS, GATE_RESULT, ExitCode
from services.trainer.run.position import CONTROL_PREFIX, position_of
from services.trainer.versions.model_card import write_artifact
from services.trainer.worker import control_run
from services.trainer.worker.bootstrap import exit_code_of, start_process
from services.trainer.worker.launcher import pause_for_fault_test
from services.trainer.worker.row_checks import RowChecks
from shared.run_stage import RunStage

log = structlog.get_logger(__name__)


def run_next_part(context: RunContext) -> None:
    """Execute the first part of the run that is not complete. Raises `RunFailed` or `RunStopped`."""
    position = position_of(context.folder)
    if not (context.folder / ADAPTER).exists():
        train_run(context)
    elif position.startswith(CONTROL_PREFIX):
        train_adapter(control_run.context_of(context))
    elif not (context.folder / GATE_RESULT).exists():
        gate_trained_run(context)


def train_run(context: RunContext) -> None:
    """Write the run's snapshot and adapter, as far as they do not exist. Raises `RunFailed` or `RunStopped`."""
    folder, config = context.folder, context.config
    problem = context.chat.training_problem()
    if problem is not None:
        raise RunFailed(problem)
    if not snapshot_files.is_complete(folder):
        take_snapshot(context)
    pause_for_fault_test(RunStage.SNAPSHOT)
    dtype.choose_for_run(folder, config.recipe.dtype, Path(config.base))
    train_adapter(context)


def train_adapter(context: RunContext) -> None:
    """Train in the context's folder, or prepare that if several processes train.

    Raises `RunFailed` or `RunStopped`.
    """
    from services.trainer.training.prepare import prepare  # noqa: PLC0415 - importing torch takes seconds
    from services.trainer.training.train import train  # noqa: PLC0415

    if context.settings.world_size > 1:
        prepare(context)  # `training_group.py` trains then
    else:
        train(context)


def gate_trained_run(context: RunContext) -> None:
    """Gate the run's adapter and write its artifact, or write what the control that the gate needs is trained on.

    Raises `RunFailed` or `RunStopped`.
    """
    folder, config = context.folder, context.config
    # Training removes them too, but the process may have been killed in between.
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    pause_for_fault_test(RunStage.TRAINED)
    from services.trainer.gate.stage import gate_run, remove_answers  # noqa: PLC0415 - importing torch takes seconds

    control = control_run.adapter_of(context)
    if control is None and control_run.is_wanted(context, None):
        control_run.begin(context)
        return
    report = gate_run(context, control)
    if control is None and control_run.is_wanted(context, report):
        control_run.begin(context)
        return
    write_artifact(folder, config, snapshot_files.read_ref(folder), report)
    remove_answers(folder)
    write_whole(folder / GATE_RESULT, report.model_dump_json(indent=1, exclude_none=True).encode())


def take_snapshot(context: RunContext) -> None:
    """Write the run's snapshot and data card. Raises `RunFailed` if the checks leave no rows to train."""
    config, recipe = context.config, context.config.recipe
    context.progress.report(RunStage.SNAPSHOT)
    checks = RowChecks(context)
    tokens = checks.tokens
    stable_run = config.stable_run
    read = data_card.ExamplesRead()
    with closing(open_read_only(context.trainer_folder)) as db:
        rewrites = _rewrites(context, batch_table.current_examples(db, config.through, config.released))
        built = snapshot.build(
            config.line,
            read.counted(batch_table.current_examples(db, config.through, config.released)),
            config.through,
            known=trained_questions(context.folder_of(stable_run)) if stable_run else [],
            unfit=checks.why_unfit,
            size=lambda row: tokens.of(row).all,
            comments=recipe.comment_mode,
            rewrites=rewrites,
            kto_least=recipe.kto_least,
            change_rule=ChangeRule.of(recipe),
            max_tokens=checks.longest,
            token_budget=recipe.token_budget,
        )
    counts = [tokens.of(grouped.row) for grouped in built.train]
    sizes = [(count.prompt, count.answers[0]) for count in counts]
    data_card.write(
        context.folder,
        data_card.build_card(config.line, config.run_id, config.created_at, recipe, built, read, sizes),
    )
    ref = snapshot_files.write(context.folder, built, tokens=sum(map(sum, sizes)))
    log.info(
        "snapshot_taken", examples=ref.examples, users=ref.users, tokens=ref.tokens, digest=ref.digest[:8]
    )
    if not built.train:
        raise RunFailed(
            "no rows are left to train after the checks: `data-card.md` in the run's folder lists the reasons"
        )


def _rewrites(context: RunContext, examples: Iterable[Example]) -> dict[str, Rewrite] | None:
    settings = context.settings
    endpoint = EndpointConfig(
        settings.reviser_url, settings.reviser_key, settings.reviser_timeout_s, settings.reviser_limit
    )
    return rewrites_for(
        context.config.line,
        context.config.recipe,
        examples,
        endpoint if settings.reviser_url else None,
        settings.revisions,
        context.progress_callback(RunStage.REVISING),
    )


def main() -> int:
    """Execute the next part of the run and return the exit code."""
    process = start_process("trainer-run")
    return run_to_exit_code(process.folder, lambda: run_next_part(process.context()))


def run_to_exit_code(folder: Path, work: Callable[[], None], position: str | None = None) -> ExitCode:
    """Execute `work` and return the exit code, also if memory or disk space did not suffice.

    Any other unexpected error is raised. `position` is what the process does, by default what the folder says.
    """
    try:
        try:
            return exit_code_of(folder, work)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return batch_sizes.handle_out_of_memory(folder, position or position_of(folder), str(error))
    except Exception as error:
        if not disk_space.is_disk_full_error(error):
            raise
        log.error("disk_full", error=str(error), deleted=disk_space.free_space(folder))  # noqa: TRY400 - not a bug
        return ExitCode.DISK_FULL


if __name__ == "__main__":
    sys.exit(main())
