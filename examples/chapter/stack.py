"""The stack of the chapter, under `.loopwright/chapter`: all services, with thresholds for a handful of rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from examples.demo.stack import PREPARED

ROOT = PREPARED / "chapter"

FIXED = {
    # A key that everybody knows; only a demo may have one.
    "LOOPWRIGHT_DEMO": "true",
    "LOOPWRIGHT_PSEUDONYM_KEY": "the chapter's own key, known to everybody",
    # The chapter's rule, which is not the default: without it comments are held.
    "LOOPWRIGHT_TRAINER_COMMENT_MODE": "append",
}
DEFAULTS = {
    # People at a terminal do not wait thirty seconds for a batch.
    "LOOPWRIGHT_PROCESSOR_BATCH_AGE_S": "1",
    # The chapter's own: 3 epochs, batches of 2.
    "LOOPWRIGHT_TRAINER_EPOCHS": "3",
    "LOOPWRIGHT_TRAINER_BATCH_SIZE": "2",
    # Three rows need few general prompts beside them, and fewer questions about general ability show as much.
    "LOOPWRIGHT_TRAINER_REPLAY_PROMPTS": "8",
    "LOOPWRIGHT_TRAINER_GATE_EVAL_PROMPTS": "24",
    "LOOPWRIGHT_TRAINER_GATE_SAFETY_PROMPTS": "8",
}


def settings(environment: Mapping[str, str]) -> dict[str, str]:
    """What the services are told: what the caller's environment says goes before the defaults."""
    asked = {name: environment[name] for name in DEFAULTS if environment.get(name)}
    return FIXED | DEFAULTS | asked


def model_folder(root: Path, version: str) -> Path:
    """Where a version lies: the artifact store names its folder by the digest that the version's name ends with."""
    digest8 = version.rsplit("-", 1)[1]
    return next((root / "artifacts").glob(f"{digest8}*"))


def snapshot_file(root: Path, run_id: str) -> Path:
    """The dataset of a run, as it was fixed before training."""
    return next((root / "data" / "trainer").rglob(f"{run_id}/train.parquet"))
