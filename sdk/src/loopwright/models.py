"""What the services answer. Unknown fields are kept (`model_extra`), so that a newer service is not cut short."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

Kind = Literal["thumbs", "rating", "correction", "comment", "preference", "retract"]
"""Kinds of feedback."""

CommandKind = Literal["promote", "rollback", "pause", "resume", "pin", "train_now", "release", "replay"]
"""Kinds of operator commands. A service refuses those that it cannot carry out."""


class Answer(BaseModel):
    """Frozen: an answer is a fact of its moment."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Accepted(Answer):
    """Feedback that is in the log for good.

    `status` is `duplicate` when the same was sent before: it counts once. `actionable` says whether a model can be
    trained on it; if not, `hint` says what to write instead.
    """

    event_id: str
    status: Literal["accepted", "duplicate"]
    actionable: bool = True
    hint: str | None = None


class Receipt(Answer):
    """What became of one feedback event: its outcome, followed on to the version that was trained on it.

    `outcome` is `pending` until the event has one. `stage` is how far it came, `serving` whether a version with it in
    its training answers users now, `detail` all this in a sentence.
    """

    response_id: str
    event_id: str
    outcome: str
    batch_id: str | None = None
    run_id: str | None = None
    version: str | None = None
    verdict: str | None = None
    serving: bool = False
    stage: str
    detail: str = ""


class Status(Answer):
    """What the loop is doing now, as the console reports it (all fields are in `model_extra`)."""


class Version(Answer):
    """One version of a model. `verdict` is the gate's; the base has none."""

    version: str
    verdict: str | None = None
    serving: bool = False
    created_at: datetime | None = None


class Command(Answer):
    """A command that was accepted; what came of it is its result."""

    command_id: str


class CommandResult(Answer):
    """What came of a command: `done`, or `refused` or `failed` for the reason in `message`."""

    command_id: str
    status: Literal["done", "refused", "failed"]
    message: str = ""
    executor: str | None = None
    finished_at: datetime | None = None
