"""The gate's turn in a run: the run's adapter against the version that serves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import structlog

from services.trainer.base import dtype
from services.trainer.base.model import load_base
from services.trainer.base.replay import EVAL_PROMPTS, SAFETY_PROMPTS, shipped_prompts
from services.trainer.dataset import snapshot
from services.trainer.gate import golden
from services.trainer.gate.eval_items import Item, items_of
from services.trainer.gate.evaluation import Asked, Bounds, Heard, hear
from services.trainer.gate.model_pair import Speakers
from services.trainer.gate.preference_pairs import Said, pairs_of
from services.trainer.gate.run import Against, gate
from services.trainer.run.context import RunContext, RunFailed
from services.trainer.run.folder import ADAPTER
from shared.adapters.artifacts import open_artifacts
from shared.errors import Misconfigured
from shared.versions import GateReport

log = structlog.get_logger(__name__)


def examine(work: RunContext) -> GateReport:
    """The gate: the run's adapter against the stable version. Raises `RunFailed` where the golden set cannot be read,
    `Stopped`."""
    return examine_adapter(work, work.folder / ADAPTER, work.folder)


def examine_adapter(work: RunContext, adapter: Path, folder: Path) -> GateReport:
    """Gates any adapter on the run's base (or a whole model) with the run's held-out feedback. What was said lies in
    `folder` afterwards."""
    config, recipe = work.config, work.config.recipe
    asked = asked_of(work)
    base = load_base(Path(config.base), recipe.threads, dtype.of_run(work.folder))

    def heard() -> Heard:
        with Speakers(
            base, {"candidate": adapter, "stable": stable_adapter(work)}, recipe.threads
        ) as speakers:
            bounds = Bounds(recipe.gate_new_tokens, recipe.replay_new_tokens)
            return hear(speakers, work.tokenizer, asked, bounds, work.progress_callback)

    against = Against(
        config.line, config.run_id, config.stable.version, recipe.gate_items, recipe.gate_shorter
    )
    report = gate(asked, heard, against, folder)
    log.info("gated", verdict=report.verdict, reasons=report.reasons, items=counts(asked.items))
    return report


def asked_of(work: RunContext) -> Asked:
    """Everything that both versions are to be asked."""
    config, recipe = work.config, work.config.recipe
    trained = said_in(work.folder)
    by_stable = said_in(work.folder_of(config.stable_run)) if config.stable_run else []
    held_out = snapshot.read_rows(work.folder, snapshot.HELDOUT_ROWS)
    prompts = shipped_prompts(EVAL_PROMPTS, recipe.gate_eval_prompts)
    safety = shipped_prompts(SAFETY_PROMPTS, recipe.gate_safety_prompts)
    own = work.base_answers([*prompts, *safety])
    return Asked(
        items=items_of(
            held_out, [question for question, _ in trained], [question for question, _ in by_stable]
        ),
        pairs=pairs_of(config.line, [one.row for one in held_out], [*trained, *by_stable]),
        prompts=prompts,
        own=own[: len(prompts)],
        safety=safety,
        own_safe=own[len(prompts) :],
        golden=_golden(work),
    )


def said_in(folder: Path) -> list[Said]:
    """The questions and answers of a run's snapshot; none where it was erased."""
    rows = [one.row for one in snapshot.read_rows(folder)] if snapshot.is_complete(folder) else []
    said = [(row.question, row.answer) for row in rows]
    return said + [(row.question, row.original) for row in rows if row.objective == "dpo"]


def _golden(work: RunContext) -> list[golden.Golden]:
    """It was good when the trainer started; it may have been changed since."""
    path = work.settings.golden
    try:
        return golden.read(path) if path is not None else []
    except Misconfigured as error:
        raise RunFailed(f"{error}: mend it, and train again") from error


def counts(items: Sequence[Item]) -> dict[str, int]:
    return {kind: sum(item.counts == kind for item in items) for kind in ("wins", "seen", "unseen")}


def stable_adapter(work: RunContext) -> Path | None:
    stable = work.config.stable
    if stable.kind == "base":
        return None
    # Nothing collects it meanwhile: an open run's stable version is kept.
    store = open_artifacts(work.settings.artifacts, work.settings.artifact_cache)
    return store.fetch(stable.uri, stable.digest)
