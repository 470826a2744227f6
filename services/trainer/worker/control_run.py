"""The control of a run: a second adapter, trained like the candidate, but not on what the new feedback says.

It has a folder inside the run's folder with the same layout, and its processes work there. The gate compares the
candidate with it on the same items (`docs/decisions/gate.md`). A control costs about as much as the run's training, so
later runs use it again while little has changed.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import structlog

from services.trainer.base import replay_prompts
from services.trainer.base.dtype import DTYPE_FILE
from services.trainer.base.shape import base_shape
from services.trainer.core.resolved_recipe import longest_row
from services.trainer.dataset import snapshot_files
from services.trainer.dataset.snapshot_files import HELDOUT_ROWS, Snapshot
from services.trainer.files import write_whole
from services.trainer.gate.control_rows import control_rows
from services.trainer.run.context import RunContext
from services.trainer.run.folder import ADAPTER, CONFIG, CONTROL, EVAL_BATCH
from services.trainer.run.position import CONTROL_PREFIX
from services.trainer.run.run_table import RunConfig
from services.trainer.training.rows import tokenize
from shared.versions import GateReport

MAX_GROWTH: Final = 1.5
"""Rows of a run, relative to those of a control that it uses again."""
SEED_OFFSET: Final = 1_000_003
"""Added to the recipe's seed: a control has its own order and initial weights."""
COPIED: Final = (DTYPE_FILE, EVAL_BATCH, replay_prompts.COPY)
"""Files of the run that a control uses, too."""
log = structlog.get_logger(__name__)


def is_wanted(context: RunContext, report: GateReport | None) -> bool:
    """Return whether the gate needs a control.

    Args:
        context: The run.
        report: The report without a control, or None before the gate has evaluated anything.

    """
    config = context.config
    if config.replaces == "erasure":
        return False  # the version need not be better
    wanted = config.recipe.gate_control
    if report is None:
        return wanted == "always"
    return wanted != "off" and report.verdict == "passed"


def adapter_of(context: RunContext) -> Path | None:
    """Return the adapter of the run's control, or of an earlier run's that it can use; None if there is none."""
    rows = snapshot_files.read_ref(context.folder).examples
    for folder in _trained_controls(context):
        if _is_usable(context, folder, rows):
            log.info("control_found", run_id=folder.parent.name)
            return folder / ADAPTER
    return None


def _trained_controls(context: RunContext) -> list[Path]:
    """Return the folders of all trained controls: the run's own, then those of other runs, newest first.

    A version that is gated again works in a folder of its own, and uses controls of runs.
    """
    runs = {*context.folder.parent.iterdir(), *context.settings.runs.glob("*")}
    found = [run / CONTROL for run in sorted(runs) if (run / CONTROL / ADAPTER).exists()]
    found.sort(key=lambda folder: (folder / ADAPTER).stat().st_mtime, reverse=True)
    return sorted(found, key=lambda folder: folder.parent != context.folder)


def _is_usable(context: RunContext, folder: Path, rows: int) -> bool:
    """Return whether a control was trained like one of this run, on nearly as many rows."""
    if not (snapshot_files.is_complete(folder) and (folder / CONFIG).exists()):
        return False
    config = RunConfig.from_json((folder / CONFIG).read_text(encoding="utf-8"))
    if _conditions(config) != _conditions(_config(context)):
        return False
    trained = snapshot_files.read_ref(folder).examples
    return folder.parent == context.folder or trained <= rows <= MAX_GROWTH * trained


def _conditions(config: RunConfig) -> dict[str, Any]:
    return {
        "base": config.base_digest,
        "stable": config.stable,
        "recipe": config.recipe,
        "chat_template_kwargs": dict(config.chat_template_kwargs),
    }


def begin(context: RunContext) -> None:
    """Write the folder in which the control will be trained. `snapshot.json`, written last, marks it as complete."""
    folder, config = context.folder / CONTROL, _config(context)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    by_stable = snapshot_files.trained_rows(context.folder_of(config.stable_run)) if config.stable_run else []
    known = {one.row.identity for one in by_stable}
    limit = longest_row(config.recipe, base_shape(Path(config.base)).context)
    permuted = control_rows(snapshot_files.read_rows(context.folder), known, config.recipe.seed)
    sizes = [tokenize(context.chat, one.row).tokens for one in permuted]
    rows = [one for one, size in zip(permuted, sizes, strict=True) if size <= limit]
    write_whole(folder / CONFIG, config.to_json().encode())
    for name in COPIED:
        if (context.folder / name).exists():
            write_whole(folder / name, (context.folder / name).read_bytes())
    held_out = snapshot_files.read_rows(context.folder, HELDOUT_ROWS)
    snapshot = Snapshot(tuple(rows), tuple(held_out), (), config.through)
    snapshot_files.write(folder, snapshot, tokens=sum(size for size in sizes if size <= limit))
    log.info("control_begun", rows=len(rows), left_out=len(permuted) - len(rows), unchanged=len(known))


def context_of(context: RunContext) -> RunContext:
    """Return the context in which the run's control is trained."""
    return RunContext(
        context.folder / CONTROL,
        _config(context),
        context.settings,
        context.progress.with_prefix(CONTROL_PREFIX),
        context.stop,
    )


def _config(context: RunContext) -> RunConfig:
    config = context.config
    return replace(config, recipe=config.recipe.model_copy(update={"seed": config.recipe.seed + SEED_OFFSET}))
