"""From facts to what is shown: every word, number and share of the page is decided here. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from services.console.core.responses import Json
from services.console.pages import formatting as say
from services.console.pages.loop_diagram import Loop, loop_of
from services.console.pages.page_data import PageData
from services.console.pages.progress import Progress, Threshold, progress_of, threshold_of
from services.console.pages.versions import VersionRow, version_rows

Tone = Literal["calm", "busy", "good", "warn", "bad"]
MAX_DECISIONS = 8
MAX_LETTERS = 8

NOT_READ = (
    "The log is being read. Figures appear when its end is reached; with a long history that takes a moment."
)
NO_FEEDBACK = "No feedback yet. Chat through the inference door, then send some with:"
SEND = 'loopwright send RESPONSE_ID correction "The right answer." --user somebody'
NO_SERVING = (
    "Nothing serves yet. When the trainer has started, it announces the base model and rollout adopts it."
)
NO_VERSIONS = "No version yet. The base model appears here when the trainer has started; each run adds one."
NO_ROLLOUT = "No decision yet. The first one adopts the base model."
NO_THRESHOLD = "The trainer has told no figures: it does not run, or has only just begun."
NO_RUN = "No run lately. One starts by itself when enough is collected, or when somebody orders it."
NO_LETTERS = "None. Every record so far could be read."
NO_KAFKA = "Kafka does not answer: how much was accepted and is pending is unknown; the rest is as last read."
UNREADABLE = "{} in the log could not be read by the console; some of what is shown may be wrong."


@dataclass(frozen=True, slots=True)
class Told:
    text: str
    tone: Tone


@dataclass(frozen=True, slots=True)
class Share:
    """One outcome's part of the ledger. `share` is of all events, 0..1."""

    outcome: str
    count: str
    share: float
    meaning: str


@dataclass(frozen=True, slots=True)
class Events:
    """Feedback over all lines; `ledger` is empty where there is none."""

    accepted: str
    rate: str
    pending: str
    ledger: tuple[Share, ...]


@dataclass(frozen=True, slots=True)
class Serving:
    version: str
    since: str
    at: str
    reason: str
    seq: str
    canary: str | None
    paused: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """One rollout record."""

    seq: str
    action: str
    stable: str
    reason: str
    at: str
    ago: str


@dataclass(frozen=True, slots=True)
class Letter:
    origin: str
    code: str
    service: str
    message: str
    at: str
    ago: str


@dataclass(frozen=True, slots=True)
class PageView:
    """The whole page. `read` is False before the log was read to its end: then all but the notices is empty."""

    line: str
    read: bool
    headline: Told
    notices: tuple[Told, ...]
    loop: Loop
    events: Events
    threshold: Threshold | None
    progress: Progress | None
    serving: Serving | None
    versions: tuple[VersionRow, ...]
    older_versions: int
    decisions: tuple[Decision, ...]
    dead: str
    letters: tuple[Letter, ...]


def build_view(facts: PageData) -> PageView:
    status = facts.status or {}
    threshold = threshold_of(status.get("collected"), facts.now)
    progress = progress_of(status.get("run"), facts.losses, facts.now)
    serving = _serving(status.get("serving"), facts)
    shown, older = version_rows(facts.versions)
    dead = status.get("dead_letters", 0)
    return PageView(
        line=facts.line,
        read=facts.status is not None,
        headline=_headline(facts, serving, threshold, progress),
        notices=_notices(facts),
        loop=loop_of(facts, threshold, progress),
        events=_events(facts, status),
        threshold=threshold,
        progress=progress,
        serving=serving,
        versions=shown,
        older_versions=older,
        decisions=tuple(_decision(record, facts) for record in facts.rollout[:MAX_DECISIONS]),
        dead=say.count(dead, "dead letter", "dead letters") if dead else "",
        letters=tuple(_letter(letter, facts) for letter in facts.letters[:MAX_LETTERS]),
    )


def _headline(
    facts: PageData, serving: Serving | None, threshold: Threshold | None, progress: Progress | None
) -> Told:
    """The one thing that is going on."""
    if facts.status is None:
        return Told("Reading the log", "busy")
    if progress is not None and progress.active:
        left = f", {progress.left} left" if progress.left else ""
        return Told(f"A run is {progress.stage}{left}", "busy")
    if serving is not None and serving.paused:
        return Told("Paused: no version takes over until somebody resumes", "warn")
    if serving is not None and serving.canary is not None:
        return Told(serving.canary, "busy")
    if threshold is not None and threshold.usable > 0:
        return Told(f"Collecting: {threshold.text}", "calm")
    if not facts.status.get("accepted") and not facts.status.get("ledger"):
        return Told("Waiting for the first feedback", "calm")
    return Told("At rest: nothing new to learn from", "calm")


def _notices(facts: PageData) -> tuple[Told, ...]:
    if facts.status is None:
        return (Told(NOT_READ, "busy"),)
    told = []
    if facts.status["accepted"] is None:
        told.append(Told(NO_KAFKA, "bad"))
    if facts.status["unreadable"]:
        records = say.count(facts.status["unreadable"], "record", "records")
        told.append(Told(UNREADABLE.format(records), "warn"))
    return tuple(told)


def _events(facts: PageData, status: Json) -> Events:
    ledger: dict[str, int] = dict(status.get("ledger", {}))
    if status.get("pending"):
        ledger["pending"] = status["pending"]
    total = sum(ledger.values())
    known = [outcome for outcome in say.OUTCOMES if ledger.get(outcome)]
    others = sorted(outcome for outcome in ledger if outcome not in say.OUTCOMES)
    shares = tuple(
        Share(
            outcome.replace("_", " "),
            say.number(ledger[outcome]),
            ledger[outcome] / total,
            say.OUTCOMES.get(outcome, ""),
        )
        for outcome in [*known, *others]
    )
    rate = "" if facts.per_minute is None else f"{say.number(round(facts.per_minute))} a minute"
    return Events(say.number(status.get("accepted")), rate, say.number(status.get("pending")), shares)


def _serving(record: Json | None, facts: PageData) -> Serving | None:
    if record is None:
        return None
    since = say.moment(record["since"]) or facts.now
    canary = None
    if record["canary"] is not None:
        canary = f"Canary {say.short(record['canary'])} answers {record['share']:.0%} of the users"
    return Serving(
        version=record["version"],
        since=say.ago(since, facts.now),
        at=say.when(since),
        reason=record["reason"],
        seq=say.number(record["seq"]),
        canary=canary,
        paused=record["paused"],
    )


def _decision(record: Json, facts: PageData) -> Decision:
    at = say.moment(record["decided_at"]) or facts.now
    return Decision(
        seq=say.number(record["seq"]),
        action=record["action"].replace("_", " "),
        stable=say.short(record["stable"]["version"]),
        reason=record["reason"],
        at=say.when(at),
        ago=say.ago(at, facts.now),
    )


def _letter(letter: Json, facts: PageData) -> Letter:
    at = say.moment(letter["at"]) or facts.now
    return Letter(
        origin=letter["topic"] or "an unknown topic",
        code=letter["code"] or "no reason",
        service=letter["service"],
        message=letter["message"],
        at=say.when(at),
        ago=say.ago(at, facts.now),
    )
