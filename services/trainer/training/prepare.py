"""Prepare a run's training: its rows, its resolved recipe and its steps, as one job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog

from services.trainer.base import dtype
from services.trainer.base.device import run_machine
from services.trainer.base.shape import base_shape
from services.trainer.core.recipe import Recipe
from services.trainer.core.resolved_recipe import BaseShape, DataSize, ResolvedRecipe, resolve
from services.trainer.dataset import snapshot_files
from services.trainer.run import environment, micro_batch, resolved
from services.trainer.run.checkpoint_manifest import newest_step
from services.trainer.run.context import RunContext, RunFailed
from services.trainer.run.folder import CHECKPOINTS
from services.trainer.training.job import TrainingJob
from services.trainer.training.replay import record_replay, replay_rows
from services.trainer.training.rows import TokenizedRow, longest, tokenize
from services.trainer.training.step_plan import plan_steps

MAX_VALIDATION_ROWS: Final = 128
log = structlog.get_logger(__name__)


def prepare(context: RunContext) -> TrainingJob:
    """Return the job of the run. What it needs and what describes it are then in the run's folder.

    Raises:
        RunFailed: There is nothing to train.
        RunStopped: The run was asked to stop.

    """
    folder, chat, config = context.folder, context.chat, context.config
    rows = [tokenize(chat, grouped.row) for grouped in snapshot_files.read_rows(folder)]
    if not rows:
        raise RunFailed("the snapshot has no rows to train")
    train_tokens = round(sum(row.tokens for row in rows) * config.recipe.epochs)
    by_epoch = replay_rows(context, train_tokens)
    replay = [row for epoch in by_epoch for row in epoch]
    record_replay(folder, replay, train_tokens)
    recipe = resolve_for_run(context, rows, replay)
    steps = plan_steps(
        rows, by_epoch, tokens_per_step=recipe.tokens_per_step, epochs=recipe.epochs, seed=recipe.seed
    )
    size = micro_batch.start(folder, recipe.micro_batch_tokens, longest([*rows, *replay]))
    # Several processes would have to agree on a size that they measure.
    limit = None if size.measured or recipe.processes > 1 else recipe.micro_batch_limit
    if limit is None:
        record_environment(context)
    log.info("training", rows=len(rows), replay=len(replay), steps=len(steps), **recipe.model_dump())
    return TrainingJob(
        base=config.base,
        base_digest=config.base_digest,
        dtype=dtype.of_run(folder),
        threads=config.recipe.threads,
        recipe=recipe.model_copy(update={"micro_batch_tokens": size.tokens, "micro_batch_limit": limit}),
        steps=steps,
        validation=validation_rows(context) if recipe.validation_steps else [],
    )


def record_environment(context: RunContext) -> None:
    """Record the software and hardware that the run trains on, and the size of its micro-batches."""
    environment.record(context.folder, environment.current(context.folder, context.config.recipe))


def validation_rows(context: RunContext) -> list[TokenizedRow]:
    """Return corrections of held-out users, at most `MAX_VALIDATION_ROWS`; they do not train."""
    rows = snapshot_files.read_rows(context.folder, snapshot_files.HELDOUT_ROWS)
    corrections = [one.row for one in rows if one.row.objective == "sft"]
    return [tokenize(context.chat, row) for row in corrections[:MAX_VALIDATION_ROWS]]


def resolve_for_run(
    context: RunContext, rows: Sequence[TokenizedRow], replay: Sequence[TokenizedRow]
) -> ResolvedRecipe:
    """Return the values that the run trains with; derive and store them if it has none yet."""
    known = resolved.read(context.folder)
    processes = context.settings.world_size
    if known is not None and known.processes != processes and not newest_step(context.folder / CHECKPOINTS):
        known = None  # nothing was trained yet
    if known is None:
        config = context.config
        known = resolve_recipe(
            config.recipe,
            base_shape(Path(config.base)),
            dtype.bytes_per_weight(context.folder),
            rows,
            replay,
            processes=processes,
        )
        resolved.write(context.folder, known)
    return known


def resolve_recipe(
    recipe: Recipe,
    base: BaseShape,
    weight_bytes: int,
    rows: Sequence[TokenizedRow],
    replay: Sequence[TokenizedRow],
    *,
    processes: int = 1,
) -> ResolvedRecipe:
    """Return the values to train with on this machine.

    Args:
        recipe: The settings.
        base: Dimensions of the base.
        weight_bytes: Bytes per weight of the base in memory.
        rows: Rows that train once per epoch.
        replay: Rows that train once.
        processes: Processes that train together, each on a device like this one.

    """
    return resolve(
        recipe,
        base,
        run_machine(weight_bytes, processes),
        DataSize(
            rows=round(len(rows) * recipe.epochs) + len(replay),
            tokens=round(sum(row.tokens for row in rows) * recipe.epochs) + sum(row.tokens for row in replay),
            longest=longest([*rows, *replay]),
        ),
    )
