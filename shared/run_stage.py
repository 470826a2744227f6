"""Stages of a training run: in the trainer's run table, in live progress, and in what the HTTP APIs return."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class RunStage(StrEnum):
    """Stage of a training run, in the order in which a run passes through them.

    The run table stores the stages that a restart resumes from: `begun`, `snapshot`, `trained`, `gated` and the ended
    ones. Live progress (`shared/live_status.py`) also reports the steps in between.
    """

    BEGUN = "begun"
    """The run is recorded; it has no dataset snapshot yet."""
    SNAPSHOT = "snapshot"
    """The dataset snapshot is being written (in the run table: it is complete)."""
    REVISING = "revising"
    """Answers are being rewritten from users' comments."""
    REPLAY = "replay"
    """The base model is answering the prompts of the replay data."""
    TRAINING = "training"
    """Training steps are being taken."""
    TRAINED = "trained"
    """The adapter is complete; the gate comes next."""
    GATE = "gate"
    """The gate is evaluating the candidate."""
    CONTROL = "control"
    """The control is being trained, with which the gate compares the candidate (`control: training`)."""
    GATED = "gated"
    """The gate has written its report; the version is about to be published."""
    WAITING = "waiting"
    """The run was interrupted and resumes automatically, for instance once disk space is free."""
    PUBLISHED = "published"
    """The version is on `model.versions`."""
    FAILED = "failed"
    """The run has failed and is not retried."""
    ERASED = "erased"
    """The run was ended because an erasure affected its snapshot; a new run replaces it."""


ENDED_STAGES: Final = frozenset({RunStage.PUBLISHED, RunStage.FAILED, RunStage.ERASED})
"""A run in one of these stages makes no further progress."""
_BY_NAME: Final = {stage.value: stage for stage in RunStage}


def run_stage(text: str) -> RunStage | None:
    """Return the stage that `text` names, or None if it names none.

    The gate appends what it is evaluating to its stage: `gate, candidate: answers` is `RunStage.GATE`.
    """
    name = text.replace(":", ",").partition(",")[0]
    return _BY_NAME.get(name)
