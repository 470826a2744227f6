"""Model of the page: every word, number and share that it shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from services.console.core.responses import Json
from services.console.pages import formatting as fmt
from services.console.pages.canary import CanaryView, canary_view
from services.console.pages.loop_diagram import LoopDiagram, loop_diagram
from services.console.pages.page_data import PageData
from services.console.pages.progress import RunView, ThresholdView, run_view, threshold_view
from services.console.pages.versions import VersionRow, version_rows
from shared.events import OutcomeKind

Tone = Literal["calm", "busy", "good", "warn", "bad"]
MAX_DECISIONS: Final = 8
MAX_DEAD_LETTERS: Final = 8

READING_LOG: Final = "Reading the log. Figures appear once the console has reached its end."
NO_FEEDBACK: Final = "No feedback yet. Chat through the inference API, then send feedback on a response:"
SEND_COMMAND: Final = 'loopwright send RESPONSE_ID correction "The right answer." --user USER_ID'
NO_SERVING: Final = (
    "No version is serving yet. The trainer publishes the base model when it starts, and rollout adopts it."
)
NO_VERSIONS: Final = (
    "No versions yet. The base model appears once the trainer has started; each run adds one."
)
NO_ROLLOUT: Final = "No decisions yet. The first one adopts the base model."
NO_CANARY: Final = (
    "No version is tried on a share of the users. With the rollout's policy `canary`, each version that passes its "
    "gate is; with `direct`, it serves everyone at once."
)
NO_THRESHOLD: Final = "No status from the trainer. Either it is not running or it has just started."
NO_RUN: Final = (
    "No recent run. A run starts automatically when enough data is collected, or when an operator starts one."
)
NO_DEAD_LETTERS: Final = "None. All records so far could be processed."
NO_KAFKA: Final = (
    "Kafka is not reachable, so the numbers of accepted and pending events are unknown. Check the brokers. Everything "
    "else is as of the last update."
)
UNREADABLE: Final = (
    "The console could not read {} of the log, so some figures may be wrong. Check that all services run the same "
    "release."
)


@dataclass(frozen=True, slots=True)
class StatusMessage:
    """One sentence about the state of the loop."""

    text: str
    tone: Tone


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One outcome in the ledger. `share` is its share of all events, 0..1."""

    outcome: str
    count: str
    share: float
    meaning: str


@dataclass(frozen=True, slots=True)
class FeedbackView:
    """Feedback over all lines. The ledger is empty if there is no feedback."""

    accepted: str
    rate: str
    pending: str
    ledger: tuple[LedgerRow, ...]
    since: str
    """Since when the figures are, if that is not the beginning."""
    refused_responses: str
    """How many responses were refused and why; empty if none."""


@dataclass(frozen=True, slots=True)
class ServingView:
    """The newest rollout record of the line."""

    version: str
    age: str
    at: str
    reason: str
    seq: str
    canary: str | None
    canary_version: str | None
    paused: bool
    waiting: str | None
    replicas: str
    """How many replicas serve the version, by their own reports."""


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """One rollout record in the list."""

    seq: str
    action: str
    stable: str
    reason: str
    at: str
    age: str


@dataclass(frozen=True, slots=True)
class DeadLetterRow:
    """One dead letter in the list, without its content."""

    topic: str
    error_class: str
    service: str
    message: str
    at: str
    age: str


@dataclass(frozen=True, slots=True)
class PageView:
    """The whole page. Until `log_read` is set, everything but the headline and the notices is empty."""

    line: str
    log_read: bool
    headline: StatusMessage
    notices: tuple[StatusMessage, ...]
    loop: LoopDiagram
    feedback: FeedbackView
    threshold: ThresholdView | None
    run: RunView | None
    serving: ServingView | None
    versions: tuple[VersionRow, ...]
    older_versions: int
    decisions: tuple[DecisionRow, ...]
    canary: CanaryView | None
    dead_letter_count: str
    dead_letters: tuple[DeadLetterRow, ...]


def build_view(data: PageData) -> PageView:
    """Return the page for this data."""
    status = data.status or {}
    threshold = threshold_view(data.collected, data.now)
    run = run_view(data.run, data.losses, data.now)
    serving = _serving(status.get("serving"), data)
    versions, older_versions = version_rows(data.versions)
    dead_letters = status.get("dead_letters", 0)
    return PageView(
        line=data.line,
        log_read=data.status is not None,
        headline=_headline(data, serving, threshold, run),
        notices=_notices(data),
        loop=loop_diagram(data, threshold, run),
        feedback=_feedback(data, status),
        threshold=threshold,
        run=run,
        serving=serving,
        versions=versions,
        older_versions=older_versions,
        decisions=tuple(_decision(record, data) for record in data.rollout[:MAX_DECISIONS]),
        canary=canary_view(data.rollout_state),
        dead_letter_count=fmt.count(dead_letters, "dead letter", "dead letters") if dead_letters else "",
        dead_letters=tuple(_dead_letter(letter, data) for letter in data.dead_letters[:MAX_DEAD_LETTERS]),
    )


def _headline(
    data: PageData, serving: ServingView | None, threshold: ThresholdView | None, run: RunView | None
) -> StatusMessage:
    """Return the most important thing that is happening now."""
    if data.status is None:
        return StatusMessage("Reading the log", "busy")
    if run is not None and run.active:
        time_left = f", {run.time_left} left" if run.time_left else ""
        return StatusMessage(f"Run in progress: {run.stage_and_task}{time_left}", "busy")
    if serving is not None and serving.paused:
        return StatusMessage("Rollout paused: no new version takes over until it is resumed", "warn")
    if serving is not None and serving.canary is not None:
        return StatusMessage(serving.canary, "busy")
    if threshold is not None and threshold.usable > 0:
        return StatusMessage(f"Collecting: {threshold.text}", "calm")
    if not data.status.get("accepted") and not data.status.get("ledger"):
        return StatusMessage("Waiting for the first feedback", "calm")
    return StatusMessage("Idle: no new usable examples", "calm")


def _notices(data: PageData) -> tuple[StatusMessage, ...]:
    if data.status is None:
        return (StatusMessage(READING_LOG, "busy"),)
    notices = []
    if data.status["accepted"] is None:
        notices.append(StatusMessage(NO_KAFKA, "bad"))
    if data.status["unreadable"]:
        records = fmt.count(data.status["unreadable"], "record", "records")
        notices.append(StatusMessage(UNREADABLE.format(records), "warn"))
    return tuple(notices)


def _feedback(data: PageData, status: Json) -> FeedbackView:
    ledger: dict[str, int] = dict(status.get("ledger", {}))
    if status.get("pending"):
        ledger["pending"] = status["pending"]
    total = sum(ledger.values())
    known = [outcome for outcome in fmt.OUTCOMES if ledger.get(outcome)]
    unknown = sorted(outcome for outcome in ledger if outcome not in fmt.OUTCOMES)
    rows = tuple(
        LedgerRow(
            outcome.replace("_", " "),
            fmt.number(ledger[outcome]),
            ledger[outcome] / total,
            _meaning(outcome, status),
        )
        for outcome in [*known, *unknown]
    )
    rate = "" if data.events_per_minute is None else f"{fmt.number(round(data.events_per_minute))} per minute"
    since = fmt.parse_time(status.get("ledger_since"))
    return FeedbackView(
        accepted=fmt.number(status.get("accepted")),
        rate=rate,
        pending=fmt.number(status.get("pending")),
        ledger=rows,
        since="" if since is None else f"Since {fmt.timestamp(since)}; older events have left the log.",
        refused_responses=_refused_responses(status.get("refused_responses") or {}),
    )


def _meaning(outcome: str, status: Json) -> str:
    meaning, reasons = fmt.OUTCOMES.get(outcome, ""), status.get("refused")
    if outcome != OutcomeKind.REFUSED or not reasons:
        return meaning
    return f"{meaning}: {fmt.reasons(reasons)}"


def _refused_responses(reasons: dict[str, int]) -> str:
    if not reasons:
        return ""
    total = fmt.count(sum(reasons.values()), "recorded response was", "recorded responses were")
    return f"{total} refused: {fmt.reasons(reasons)}."


def _serving(record: Json | None, data: PageData) -> ServingView | None:
    if record is None:
        return None
    since = fmt.parse_time(record["since"]) or data.now
    canary = None
    if record["canary"] is not None:
        does = "serves" if record["replicas"]["canary"] else "is ordered, but not served yet, for"
        canary = f"Canary {fmt.short_version(record['canary'])} {does} {record['share']:.0%} of the users"
    return ServingView(
        version=record["version"],
        age=fmt.ago(since, data.now),
        at=fmt.timestamp(since),
        reason=record["reason"],
        seq=fmt.number(record["seq"]),
        canary=canary,
        canary_version=record["canary"],
        paused=record["paused"],
        waiting=_waiting(record),
        replicas=_replicas(record["replicas"]),
    )


def _replicas(replicas: Json) -> str:
    serving, live = replicas["serving"], replicas["live"]
    refused = f" {replicas['refused']}" if replicas["refused"] else ""
    if not live:
        return "Ordered; no replica of inference has reported within a minute."
    if not serving:
        return f"Ordered; none of {fmt.count(live, 'replica', 'replicas')} serves it yet.{refused}"
    return f"Serving on {fmt.number(serving)} of {fmt.count(live, 'replica', 'replicas')}.{refused}"


def _waiting(record: Json) -> str | None:
    """Return for what a version that passed its gate waits, or None if there is none."""
    version = record.get("waiting")
    if version is None:
        return None
    if record["paused"]:
        return f"{fmt.short_version(version)} passed its gate and waits until promotions are resumed"
    if record["canary"] is not None:
        return f"{fmt.short_version(version)} passed its gate and waits until the canary is decided"
    return (
        f"{fmt.short_version(version)} passed its gate against a version that no longer serves, and waits for a "
        f"new gate. To request it again: loopwright gate {version} --again"
    )


def _decision(record: Json, data: PageData) -> DecisionRow:
    at = fmt.parse_time(record["decided_at"]) or data.now
    return DecisionRow(
        seq=fmt.number(record["seq"]),
        action=record["action"].replace("_", " "),
        stable=fmt.short_version(record["stable"]["version"]),
        reason=record["reason"],
        at=fmt.timestamp(at),
        age=fmt.ago(at, data.now),
    )


def _dead_letter(letter: Json, data: PageData) -> DeadLetterRow:
    at = fmt.parse_time(letter["at"]) or data.now
    return DeadLetterRow(
        topic=letter["topic"] or "an unknown topic",
        error_class=letter["code"] or "unknown error",
        service=letter["service"] or "an unknown service",
        message=letter["message"],
        at=fmt.timestamp(at),
        age=fmt.ago(at, data.now),
    )
