"""What the processes of a run need to know to train. Rank 0 makes it and shares it with the others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.trainer.core.hardware import Dtype
from services.trainer.core.resolved_recipe import ResolvedRecipe
from services.trainer.training.rows import TokenizedRow
from services.trainer.training.step_plan import Step


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """Everything that a run's training is a function of, except the base's weights."""

    base: str
    """Folder of the base, on rank 0's machine."""
    base_digest: str
    dtype: Dtype
    threads: int
    recipe: ResolvedRecipe
    """The values to train with, and the present size of micro-batches."""
    steps: Sequence[Step]
    """The rows of each step."""
    validation: Sequence[TokenizedRow]
    """Rows of held-out users; empty if they are not evaluated."""

    def to_json(self) -> bytes:
        """Return the job as JSON, each row once."""
        numbers: dict[TokenizedRow, int] = {}
        for row in self._rows():
            numbers.setdefault(row, len(numbers))
        fields = {
            "base": self.base,
            "base_digest": self.base_digest,
            "dtype": self.dtype,
            "threads": self.threads,
            "recipe": self.recipe.model_dump(),
            "rows": [_row_fields(row) for row in numbers],
            "steps": [[numbers[row] for row in step] for step in self.steps],
            "validation": [numbers[row] for row in self.validation],
        }
        return json.dumps(fields).encode()

    @classmethod
    def from_json(cls, text: bytes) -> TrainingJob:
        """Return the job that `to_json` wrote."""
        fields = json.loads(text)
        rows = [_row(one) for one in fields.pop("rows")]
        return cls(
            **fields
            | {
                "recipe": ResolvedRecipe(**fields["recipe"]),
                "steps": [tuple(rows[number] for number in step) for step in fields["steps"]],
                "validation": [rows[number] for number in fields["validation"]],
            }
        )

    def on(self, base: str) -> TrainingJob:
        """Return the job for a machine that has the base in another folder."""
        return replace(self, base=base)

    def _rows(self) -> Iterable[TokenizedRow]:
        for step in self.steps:
            yield from step
        yield from self.validation


def _row_fields(row: TokenizedRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in TokenizedRow.__slots__}


def _row(fields: Mapping[str, Any]) -> TokenizedRow:
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return TokenizedRow(**values)
