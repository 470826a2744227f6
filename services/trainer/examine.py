"""The gate's turn in a run: the run's adapter against the version that serves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import structlog

from services.trainer import snapshot
from services.trainer.gate.items import Item, items_of
from services.trainer.gate.run import Voice, gate, listen
from services.trainer.model import load_base
from services.trainer.replay import EVALUATION, shipped
from services.trainer.sweep import ANSWERS
from services.trainer.tokens import Told
from services.trainer.work import ADAPTER, Work, questions_of
from shared.adapters.artifacts import open_artifacts
from shared.versions import GateReport

log = structlog.get_logger(__name__)


def examine(work: Work) -> GateReport:
    """The gate: the run's adapter against the stable version."""
    config, recipe = work.config, work.config.recipe
    stable_questions = questions_of(work.sibling(config.stable_run)) if config.stable_run else []
    items = items_of(
        snapshot.read_rows(work.folder, snapshot.HELD_OUT), questions_of(work.folder), stable_questions
    )
    prompts = shipped(EVALUATION, recipe.gate_eval_prompts)
    own = work.base_says(prompts)
    keyed = [i for i, prompt in enumerate(prompts) if prompt.answer_key]
    base = load_base(Path(config.base), recipe.threads)

    def hear(who: str) -> Voice:
        adapter = work.folder / ADAPTER if who == "candidate" else stable_adapter(work)

        def told(stage: str) -> Told:
            return work.told(f"gate, {who}: {stage}")

        return listen(
            base,
            work.tokenizer,
            adapter,
            [item.row.messages for item in items],
            own,
            keyed,
            recipe.gate_new_tokens,
            told,
        )

    report = gate(
        items,
        prompts,
        hear,
        gated_against=config.stable.version,
        least_items=recipe.gate_items,
        answers_file=work.folder / ANSWERS,
    )
    log.info("gated", verdict=report.verdict, reasons=report.reasons, items=counts(items))
    return report


def counts(items: Sequence[Item]) -> dict[str, int]:
    return {kind: sum(item.counts == kind for item in items) for kind in ("wins", "seen", "unseen")}


def stable_adapter(work: Work) -> Path | None:
    stable = work.config.stable
    if stable.kind == "base":
        return None
    # Nothing collects it meanwhile: an open run's stable version is kept.
    store = open_artifacts(work.settings.artifacts, work.settings.artifact_cache)
    return store.fetch(stable.uri, stable.digest)
