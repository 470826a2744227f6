"""One run, in a process of its own: `python -m services.trainer.worker.pipeline RUN_DIR`.

Stages, each skipped where its result is there already: snapshot.json -> adapter/ -> artifact/ -> gate.json (written
last). So a kill -9 at any moment costs at most the work since the newest checkpoint, and never a second dataset.

Ends with 0 done; 3 failed for good (`failed.txt` says why); 4 out of memory, and the next start takes smaller pieces;
5 the disk is full, and what could go is gone; 143 stopped by SIGTERM.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import structlog

from services.trainer.base import dtype
from services.trainer.base.tokenization import lengths, token_count
from services.trainer.database import open_to_read
from services.trainer.dataset import batch_table, data_card, snapshot
from services.trainer.dataset.comment_rewriter import revised_for
from services.trainer.dataset.filters import Row
from services.trainer.files import write_whole
from services.trainer.run import disk_space, environment, micro_batch
from services.trainer.run.context import RunFailed, RunContext, trained_questions
from services.trainer.run.folder import ADAPTER, CHECKPOINTS, FAILURE_REASON, GATE_RESULT, ExitCode
from services.trainer.run.run_table import RunConfig
from services.trainer.versions.model_card import write_artifact
from services.trainer.worker.bootstrap import open_run, exit_code_of
from services.trainer.worker.launcher import pause_for_fault_test
from services.trainer.worker.restart_policy import MEMORY_REMEDY

log = structlog.get_logger(__name__)


def run_stages(work: RunContext) -> None:
    """Whatever of the run is left."""
    if not snapshot.is_complete(work.folder):
        take_snapshot(work)
    pause_for_fault_test("snapshot")
    if not (work.folder / ADAPTER).exists():
        from services.trainer.training.train import train  # noqa: PLC0415 - seconds of imports, only where they are needed

        recipe = work.config.recipe
        if not environment.read(work.folder):
            # What began under an older release goes on as it began.
            dtype.settle(work.folder, recipe.dtype, Path(work.config.base))
        environment.record(work.folder, environment.current(work.folder, recipe))
        train(work)
    # They are of no more use; a kill may have come between the adapter and their removal.
    shutil.rmtree(work.folder / CHECKPOINTS, ignore_errors=True)
    pause_for_fault_test("trained")
    if not (work.folder / GATE_RESULT).exists():
        from services.trainer.gate.stage import examine  # noqa: PLC0415 - as above

        report = examine(work)
        write_artifact(work.folder, work.config, snapshot.read_ref(work.folder), report)
        write_whole(work.folder / GATE_RESULT, report.model_dump_json(indent=1, exclude_none=True).encode())


def take_snapshot(work: RunContext) -> None:
    """Raises `RunFailed` where nothing is left after verification."""
    work.progress.tell("snapshot")
    with closing(open_to_read(work.folder.parent.parent)) as db:
        examples = batch_table.dataset(db, work.config.through, work.config.released)

    recipe = work.config.recipe

    def fits(row: Row) -> bool:
        return token_count(work.tokenizer, row.messages, row.answer) <= recipe.max_tokens

    revised = revised_for(work.settings, recipe, examples, work.progress_callback("revising"))
    known = trained_questions(work.folder_of(work.config.stable_run)) if work.config.stable_run else []
    taken = snapshot.take(
        work.config.line,
        examples,
        work.config.through,
        known=known,
        fits=fits,
        comments=recipe.comment_mode,
        revised=revised,
        kto_least=recipe.kto_least,
    )
    sizes = [lengths(work.tokenizer, one.row.messages, one.row.answer) for one in taken.train]
    data_card.write(work.folder, data_card.card_of(work.config, taken, examples, sizes))
    ref = snapshot.write(work.folder, taken, tokens=sum(map(sum, sizes)))
    log.info(
        "snapshot_taken", examples=ref.examples, users=ref.users, tokens=ref.tokens, digest=ref.digest[:8]
    )
    if not taken.train:
        raise RunFailed("nothing is left to train after verification: see the reasons for which it is held")


def main() -> int:
    folder, config, work = open_run("trainer-run")
    return run_to_exit_code(folder, config, lambda: run_stages(work()))


def run_to_exit_code(folder: Path, config: RunConfig, done: Callable[[], None]) -> int:
    """As `ended`, and where memory or the disk did not suffice. Raises what nobody expected."""
    try:
        try:
            return exit_code_of(folder, done)
        except Exception as error:
            if not micro_batch.is_out_of_memory(error):
                raise
            return handle_out_of_memory(folder, config.recipe.batch_size, error)
    except Exception as error:
        if not disk_space.is_disk_full_error(error):
            raise
        log.error("disk_full", error=str(error), freed=disk_space.free_space(folder))  # noqa: TRY400 - no bug of ours
        return ExitCode.DISK_FULL


def handle_out_of_memory(folder: Path, batch_size: int, error: Exception) -> int:
    """Smaller pieces from the next start on, where it was training and they can be smaller."""
    training = snapshot.is_complete(folder) and not (folder / ADAPTER).exists()
    after = micro_batch.halve(folder, batch_size) if training else None
    log.warning("out_of_memory", error=str(error), micro_batch=after)
    if after is not None:
        return ExitCode.OUT_OF_MEMORY
    doing = "training with one row at a time" if training else "this is no step of training"
    write_whole(folder / FAILURE_REASON, f"memory did not suffice ({doing}): {MEMORY_REMEDY}".encode())
    return ExitCode.FAILED


if __name__ == "__main__":
    sys.exit(main())
