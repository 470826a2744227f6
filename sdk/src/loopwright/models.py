"""What the services answer. Unknown fields are kept (`model_extra`), so that a newer service is not cut short."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Kind = Literal["thumbs", "rating", "correction", "comment", "preference", "retract"]
"""Kinds of feedback."""

CommandKind = Literal[
    "promote",
    "rollback",
    "pause",
    "resume",
    "pin",
    "train_now",
    "export_dataset",
    "release",
    "reproduce",
    "collect_garbage",
    "replay",
]
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


class Recorded(Answer):
    """A response of your own model that is in the log for good."""

    response_id: str
    status: Literal["accepted"]


class Receipt(Answer):
    """What became of one feedback event: its outcome, followed on to the version that was trained on it.

    `outcome` is `pending` until the event has one. `version` is the first that was trained on it,
    `serving_version` the one with it in its training that answers users now, if `serving`. `stage` is how far it came,
    `detail` all this in a sentence.
    """

    response_id: str
    event_id: str
    outcome: str
    batch_id: str | None = None
    run_id: str | None = None
    version: str | None = None
    verdict: str | None = None
    serving: bool = False
    serving_version: str | None = None
    stage: str
    detail: str = ""


class Erasure(Answer):
    """How far the erasure of one user has come.

    `status`: `requested` (in the log), `in_processor` (`partitions_done` of `partitions` hold nothing of the user any
    more), `in_trainer` (all of them), `done` (nor do datasets and snapshots). By `deadline` the log has dropped its
    last copies. `versions` were trained from it, and still are. `subject` is the user's pseudonym, `detail` all this
    in a sentence.
    """

    request_id: str
    subject: str
    status: Literal["requested", "in_processor", "in_trainer", "done"]
    line: str = ""
    requested_at: datetime | None = None
    deadline: datetime | None = None
    partitions_done: int = 0
    partitions: int | None = None
    responses: int = 0
    signals: int = 0
    batches: int = 0
    snapshots: int = 0
    versions: tuple[str, ...] = ()
    completed_at: datetime | None = None
    overdue: bool = False
    detail: str = ""


class Serving(Answer):
    """Which version answers a line's users, since when and why: the line's newest rollout record."""

    version: str
    seq: int
    since: datetime
    reason: str
    canary: str | None = None
    share: float = 0.0
    paused: bool = False


class Status(Answer):
    """What the loop is doing now. More than these fields is in `model_extra`.

    `serving` is None before the line's first rollout record. `ledger` counts feedback events by outcome; `accepted`
    and `pending` are None where the log did not answer.
    """

    line: str
    serving: Serving | None = None
    ledger: dict[str, int] = {}
    accepted: int | None = None
    pending: int | None = None


class Figure(Answer):
    """One figure of the gate with its interval. `baseline` is the same for the version that it was compared with."""

    name: str
    n: int
    value: float | None = None
    low: float | None = None
    high: float | None = None
    baseline: float | None = None
    bound: float | None = None
    passed: bool | None = None


class Version(Answer):
    """One version of a model. `verdict`, its `reasons` and `figures` are the gate's; the base has none."""

    version: str
    kind: str | None = None
    number: int | None = None
    run_id: str | None = None
    verdict: str | None = None
    reasons: tuple[str, ...] = ()
    gated_against: str | None = None
    figures: tuple[Figure, ...] = ()
    serving: bool = False
    created_at: datetime | None = None


class Gate(Answer):
    """The verdict, why, and all figures. `more_items`: about how many more held-out items would decide."""

    verdict: str
    reasons: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    gated_against: str | None = None
    more_items: int | None = None
    seconds: float = 0.0


class GateReport(Answer):
    """What the gate found of a version. The answers (`items`, `pairs`, `general`, `safety`, `golden`) are users' text;
    where the trainer does not tell them, `without` says why."""

    version: str
    run_id: str | None = None
    report: Gate
    items: tuple[dict[str, Any], ...] = ()
    pairs: tuple[dict[str, Any], ...] = ()
    general: tuple[dict[str, Any], ...] = ()
    safety: tuple[dict[str, Any], ...] = ()
    golden: tuple[dict[str, Any], ...] = ()
    without: str | None = None


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
    replayed: int | None = None
    """Of a `replay` alone: how many dead letters went back."""


class Held(Answer):
    """A thing somebody said that is held back from training, and can be released. `reason` begins with the check."""

    response_id: str
    event_id: str
    reason: str


class Quarantine(Answer):
    """What is held and can be released: at most the first 1000 of `total`, which is None while it is not known."""

    held: tuple[Held, ...]
    total: int | None = None
    updated_at: datetime | None = None


class LineageEvent(Answer):
    """An event that trained. `user` is a pseudonym."""

    event_id: str
    kind: str
    user: str


class LineageResponse(Answer):
    """A response with the events of it that trained."""

    response_id: str
    revision: int
    events: tuple[LineageEvent, ...] = ()


class LineageBatch(Answer):
    """A batch with what it brought. `batch_id` is None where the batch is not known any more."""

    batch_id: str | None = None
    users: int = 0
    events: int = 0
    responses: tuple[LineageResponse, ...] = ()


class Lineage(Answer):
    """What a version was made from. More than these fields is in `model_extra`: run, dataset, erasures.

    `reproducible` says whether its snapshot is whole, `why_not_reproducible` what it lost. `serving` is `stable`,
    `canary`, or None. `counts` and `batches` are of what is left of the snapshot.
    """

    version: str
    kind: str = ""
    base: str = ""
    base_model: str = ""
    verdict: str | None = None
    serving: str | None = None
    reproducible: bool
    why_not_reproducible: tuple[str, ...] = ()
    run: dict[str, Any] | None = None
    dataset: dict[str, Any] | None = None
    counts: dict[str, Any] = {}
    batches: tuple[LineageBatch, ...] = ()
    detail: str = ""


class TraceRun(Answer):
    """What one run did with an event.

    `state` is `trained`, `measured` (of a held-out user), `held`, `erased`, `not_used`, `not_read` or `not_known`;
    `version` what came of the run, if it is published.
    """

    run_id: str
    stage: str = ""
    state: str
    reason: str = ""
    version: str | None = None
    verdict: str | None = None
    serving: str | None = None


class TraceResponse(Answer):
    """An event within its response. `now` says what the checks make of it as it stands."""

    response_id: str
    kind: str | None = None
    user: str | None = None
    now: str = ""
    batches: tuple[dict[str, Any], ...] = ()
    runs: tuple[TraceRun, ...] = ()


class Trace(Answer):
    """Where an event went. Without any `responses`, `detail` says why and where to ask."""

    event_id: str
    responses: tuple[TraceResponse, ...] = ()
    detail: str | None = None


class Diff(Answer):
    """What two versions differ in. `recipe`, `software` and `dataset`: name -> [one, other] of what is not the same;
    `rows`: added, removed and changed; `figures`: of both gates by name."""

    one: dict[str, Any]
    other: dict[str, Any]
    same_base: bool
    recipe: dict[str, Any] = {}
    software: dict[str, Any] = {}
    dataset: dict[str, Any] = {}
    rows: dict[str, Any] = {}
    figures: tuple[dict[str, Any], ...] = ()


class DeadLetter(Answer):
    """A record that could not be processed: where it came from, and why.

    `position` names it. `at` is when it died, `appended_at` when the record itself was written. `bytes` is the size of
    the record; `omitted` says that it was too large to keep. `replayed_by` is the command by which it went back to its
    topic, `replayed_from` the dead letter that this record had been before, `replay_count` how often it went back so
    far.
    """

    position: str
    at: datetime
    error_class: str
    message: str = ""
    service: str = ""
    topic: str
    partition: int | None = None
    offset: int | None = None
    appended_at: datetime | None = None
    bytes: int = 0
    omitted: bool = False
    replayed_from: str | None = None
    replay_count: int = 0
    replayed_by: str | None = None


class Content(Answer):
    """A part of a record: its `data` as text where it is text, else as hex. `bytes` is the size of the whole."""

    encoding: Literal["text", "hex"]
    data: str
    bytes: int
    truncated: bool = False


class DeadLetterContent(DeadLetter):
    """A dead letter with what the record held."""

    key: Content | None = None
    value: Content | None = None
    headers: tuple[tuple[str, Content | None], ...] = ()


class DeadLetterPage(Answer):
    """Some dead letters, newest first. While `next` is not None there may be more, however few are here."""

    dead_letters: tuple[DeadLetter, ...] = ()
    next: str | None = None
