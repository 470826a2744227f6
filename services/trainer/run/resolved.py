"""The resolved recipe of a run, in its folder."""

from __future__ import annotations

from pathlib import Path

from services.trainer.core.resolved_recipe import ResolvedRecipe
from services.trainer.files import write_whole
from services.trainer.run.folder import RESOLVED_RECIPE


def read(run: Path) -> ResolvedRecipe | None:
    """Return the values that the run trains with, or None if training has not started."""
    file = run / RESOLVED_RECIPE
    return ResolvedRecipe.model_validate_json(file.read_bytes()) if file.exists() else None


def write(run: Path, recipe: ResolvedRecipe) -> None:
    """Store the values that the run trains with."""
    write_whole(run / RESOLVED_RECIPE, recipe.model_dump_json(indent=1).encode())
