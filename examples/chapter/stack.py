"""Settings and files of the chapter's stack, which is below `.loopwright/chapter`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from examples.demo.stack import PREPARED

ROOT = PREPARED / "chapter"

FIXED = {
    # A public key, which is allowed only in demo mode.
    "LOOPWRIGHT_DEMO": "true",
    "LOOPWRIGHT_PSEUDONYM_KEY": "the chapter's own key, known to everybody",
    # The chapter's rule. By default, comments are quarantined.
    "LOOPWRIGHT_TRAINER_COMMENT_MODE": "append",
}
DEFAULTS = {
    # Default: 30 seconds, too long for a person at a terminal.
    "LOOPWRIGHT_PROCESSOR_BATCH_AGE_S": "1",
    # The chapter's values: 3 epochs, and about two rows per step.
    "LOOPWRIGHT_TRAINER_EPOCHS": "3",
    "LOOPWRIGHT_TRAINER_TOKENS_PER_STEP": "160",
    # Three rows need little replay data and few evaluation prompts.
    "LOOPWRIGHT_TRAINER_REPLAY_PROMPTS": "8",
    "LOOPWRIGHT_TRAINER_GATE_EVAL_PROMPTS": "24",
    "LOOPWRIGHT_TRAINER_GATE_SKILL_PROMPTS": "8",
    "LOOPWRIGHT_TRAINER_GATE_SAFETY_PROMPTS": "8",
}


def settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the services' settings. The caller's environment overrides the defaults, but not the fixed settings."""
    overrides = {name: environment[name] for name in DEFAULTS if environment.get(name)}
    return FIXED | DEFAULTS | overrides


def model_folder(root: Path, version: str) -> Path:
    """Return the folder of a version; its name starts with the digest at the end of the version's name."""
    digest8 = version.rsplit("-", 1)[1]
    return next((root / "artifacts").glob(f"{digest8}*"))


def snapshot_file(root: Path, run_id: str) -> Path:
    """Return the dataset snapshot of a run."""
    return next((root / "data" / "trainer").rglob(f"{run_id}/train.parquet"))
