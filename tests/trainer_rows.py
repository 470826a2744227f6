"""Tokenized rows and recipes for tests of the training core."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from services.trainer.base.tokenization import load_chat
from services.trainer.core.recipe import Recipe
from services.trainer.core.resolved_recipe import BaseShape, DataSize, Machine, ResolvedRecipe, resolve
from services.trainer.training.rows import TokenizedRow, TrainedAs

SMALL_BASE = BaseShape(
    hidden=576, intermediate=1536, layers=30, vocabulary=49_152, context=8192, weights=135_000_000
)
SMALL_MACHINE = Machine(device="cpu", memory=16 * 2**30, weight_bytes=4)
SMALL_DATA = DataSize(rows=920, tokens=73_600, longest=200)
cached_chat = cache(load_chat)


def resolved_recipe(**settings: Any) -> ResolvedRecipe:
    """Return a recipe with these settings, resolved for a small base, machine and data set."""
    return resolve(Recipe(**{"micro_batch_tokens": 10_000} | settings), SMALL_BASE, SMALL_MACHINE, SMALL_DATA)


def tokenized(
    model: Path,
    objective: TrainedAs,
    messages: Sequence[tuple[str, str]],
    answer: str,
    rejected: str = "",
    *,
    liked: bool = True,
    ended: bool = True,
    rejected_ended: bool = True,
    name: str = "row",
) -> TokenizedRow:
    """Return a row, tokenized for the model in a folder."""
    chat = cached_chat(model)
    return TokenizedRow(
        name,
        objective,
        tuple(chat.prompt_ids(messages)),
        tuple(chat.answer_ids(answer, ended=ended)),
        tuple(chat.answer_ids(rejected, ended=rejected_ended)) if objective == "dpo" else (),
        liked,
    )
