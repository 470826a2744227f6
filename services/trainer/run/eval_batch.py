"""How many rows go through the model at once where a run evaluates: in base answers and at the gate.

A run starts with `GENERATE_BATCH` and `SCORE_BATCH` rows. When memory does not suffice, the process halves the number
and tries the same rows again; if the kernel kills it, the supervisor halves both numbers. They are stored in the run's
folder, so a restarted process does not begin with what failed before. Answers and likelihoods stay the same, up to the
rounding of other batch sizes.
"""

from __future__ import annotations

import json
from pathlib import Path

from services.trainer.base.memory import GENERATE_BATCH, SCORE_BATCH, BatchLimit, EvalLimits
from services.trainer.files import write_whole
from services.trainer.run.folder import EVAL_BATCH


def limits(run: Path) -> EvalLimits:
    """Return the run's limits. They store themselves whenever they get smaller."""
    generate, score = sizes(run)
    stored = EvalLimits(BatchLimit(generate), BatchLimit(score))

    def store(_: int) -> None:
        _write(run, stored.generate.rows, stored.score.rows)

    stored.generate.on_reduced = store
    stored.score.on_reduced = store
    return stored


def sizes(run: Path) -> tuple[int, int]:
    """Return how many conversations are answered, and how many answers are scored at once."""
    file = run / EVAL_BATCH
    stored = json.loads(file.read_bytes()) if file.exists() else {}
    return int(stored.get("generate", GENERATE_BATCH)), int(stored.get("score", SCORE_BATCH))


def can_halve(run: Path) -> bool:
    """Return whether fewer rows at once are possible."""
    return max(sizes(run)) > 1


def halve(run: Path) -> bool:
    """Store half of both numbers for the next start, at least 1. Return False if both are 1 already."""
    if not can_halve(run):
        return False
    _write(run, *(max(1, rows // 2) for rows in sizes(run)))
    return True


def reduction_note(run: Path) -> str | None:
    """Return a note for operators if fewer rows than usual are evaluated at once, else None."""
    generate, score = sizes(run)
    if (generate, score) == (GENERATE_BATCH, SCORE_BATCH):
        return None
    return (
        f"memory did not suffice for {GENERATE_BATCH} answers at once: {generate} are generated and {score} scored "
        "at once"
    )


def _write(run: Path, generate: int, score: int) -> None:
    write_whole(run / EVAL_BATCH, json.dumps({"generate": generate, "score": score}).encode())
