"""Checks of rows that depend on a run's base: the length of its rows, and the marks of its chat template."""

from __future__ import annotations

from pathlib import Path

from services.trainer.base.shape import base_shape
from services.trainer.base.tokenization import TokenCounts
from services.trainer.core.resolved_recipe import longest_row
from services.trainer.dataset.filters import Row, mark_check
from services.trainer.run.context import RunContext


class RowChecks:
    """Which rows the base of a run can train or answer.

    Attributes:
        longest: The longest row that trains, in tokens.
        tokens: Counts a row's tokens.
    """

    def __init__(self, context: RunContext) -> None:
        self.longest = longest_row(context.config.recipe, base_shape(Path(context.config.base)).context)
        self.tokens = TokenCounts(context.chat, self.longest)
        self._why_marked = mark_check(context.chat.marks)

    def why_unfit(self, row: Row) -> str | None:
        """Return why the base cannot train or answer a row, or None."""
        return self._why_marked(row) or self.tokens.why_unfit(row)
