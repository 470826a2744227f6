"""The harness in a gate: which versions it evaluates, and where their results are kept."""

from __future__ import annotations

from pathlib import Path

import structlog

from services.trainer.base import dtype
from services.trainer.base.device import describe
from services.trainer.gate.harness import (
    HarnessFailed,
    HarnessResults,
    Scores,
    evaluate_version,
    model_args,
    pair_scores,
)
from services.trainer.gate.model_pair import Side
from services.trainer.run.context import RunContext
from services.trainer.run.folder import GATE_PARTS

log = structlog.get_logger(__name__)


def run_harness(
    context: RunContext, adapter: Path, stable: Path | None, folder: Path
) -> dict[Side, HarnessResults]:
    """Return what the harness found on the candidate and stable, and on the candidate and the base.

    Args:
        context: The run.
        adapter: The candidate.
        stable: The stable version, or None if it is the base.
        folder: Folder in which the gate works.

    Raises:
        RunStopped: The run was asked to stop.
    """
    config, tasks = context.config, context.config.recipe.lm_eval_tasks
    if not tasks:
        return {"stable": HarnessResults(), "base": HarnessResults()}
    parts, kind = folder / GATE_PARTS, describe().kind
    base_file = context.settings.replay_dir / f"{config.base_digest[:8]}-lm-eval.json"
    versions: dict[Side, tuple[Path | None, Path, str]] = {
        "candidate": (adapter, parts / "candidate-lm-eval.json", "candidate"),
        "base": (None, base_file, config.base_digest),
    }
    if stable is not None:
        versions["stable"] = (stable, parts / "stable-lm-eval.json", config.stable.version)
    scores: dict[Side, Scores] = {}
    try:
        for side, (version, file, identity) in versions.items():
            report = context.progress_callback(f"gate, {side}: lm_eval")
            args = model_args(
                Path(config.base), version, dtype.of_run(context.folder), context.quantization()
            )
            scores[side] = evaluate_version(args, tasks, kind, file, identity, lambda: report(0, 1))  # noqa: B023
    except HarnessFailed as failed:
        log.warning("lm_eval_failed", reason=str(failed))
        return {"stable": HarnessResults(error=str(failed)), "base": HarnessResults()}
    scores.setdefault("stable", scores["base"])
    return {
        side: HarnessResults(pair_scores(scores["candidate"], scores[side])) for side in ("stable", "base")
    }
