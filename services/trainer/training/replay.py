"""Replay rows of a run: the base's own answers to general prompts, which keep its behaviour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import structlog

from services.trainer.base import replay_prompts
from services.trainer.base.base_answers import Prompt
from services.trainer.base.shape import base_shape
from services.trainer.core.resolved_recipe import longest_row, replay_weight
from services.trainer.dataset import data_card
from services.trainer.run.context import RunContext, RunFailed
from services.trainer.training.batch_order import replay_rows_needed, select_replay
from services.trainer.training.rows import TokenizedRow, replay_row, sft_row
from shared.errors import Misconfigured

log = structlog.get_logger(__name__)


def replay_rows(context: RunContext, train_tokens: int) -> list[list[TokenizedRow]]:
    """Return the replay rows of each epoch, as many as `train_tokens` of other rows in all epochs require.

    Raises:
        RunFailed: The operator's prompts cannot be read.
        RunStopped: The run was asked to stop.

    """
    recipe = context.config.recipe
    try:
        own = replay_prompts.prompts_of_run(context.folder, context.settings.replay_prompt_file)
    except Misconfigured as error:
        raise RunFailed(f"{error}. Then start a new run.") from error
    rows = _answered_prompts(context, replay_prompts.choose_prompts(own, recipe.replay_prompts))
    needed = replay_rows_needed(train_tokens, [row.tokens for row in rows], recipe.replay_share)
    if needed > recipe.replay_prompts:
        rows = _answered_prompts(context, replay_prompts.choose_prompts(own, needed))
    chosen = select_replay(train_tokens, [row.tokens for row in rows], recipe.replay_share, recipe.epochs)
    return [[rows[index] for index in epoch] for epoch in chosen]


def _answered_prompts(context: RunContext, prompts: Sequence[Prompt]) -> list[TokenizedRow]:
    """Return the base's answers as rows, without empty ones and those longer than a row may be."""
    limit = longest_row(context.config.recipe, base_shape(Path(context.config.base)).context)
    as_row = replay_row if replay_weight(context.config.recipe) else sft_row
    rows = [
        as_row(context.chat, f"replay/{one.id}", one.messages, one.answer, ended=one.ended)
        for one in context.base_answers(prompts)
        if one.answer
    ]
    return [row for row in rows if row.tokens <= limit]


def record_replay(folder: Path, replay: Sequence[TokenizedRow], train_tokens: int) -> None:
    """Add the replay data to the data card; warn if it has a smaller share of the tokens than the recipe asks for."""
    distinct = len({row.name for row in replay})
    warning = data_card.record_replay(
        folder, len(replay), sum(row.tokens for row in replay), train_tokens, distinct
    )
    if warning:
        log.warning("too_little_replay", detail=warning)
