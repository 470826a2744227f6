"""Text for numbers, times, outcomes and run stages."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from shared.run_stage import RunStage, run_stage

THIN: Final = "\N{NARROW NO-BREAK SPACE}"
DASH: Final = "–"
"""Shown for a number that is not known."""

OUTCOMES: Final[dict[str, str]] = {
    "batched": "Part of a training batch",
    "tally_only": "Counted, nothing to train on",
    "superseded": "Replaced by a newer signal from the same user",
    "duplicate": "Repeated, counted once",
    "retracted": "Retracted by the user",
    "applied_retract": "Retracted another event",
    "unmatched": "Its response never arrived",
    "late": "Arrived after the feedback window",
    "refused": "Valid, but not applicable",
    "erased": "Erased at the user's request",
    "dead": "Could not be processed",
    "pending": "No outcome yet",
}
"""Outcome -> its meaning, in the order in which the page lists them."""

REASONS: Final[dict[str, str]] = {
    "conflict": "sent again with other content",
    "not_yours": "retracts another user's event",
    "too_many": "over a limit per user or response",
    "too_large": "too large for a batch",
    "response_late": "response after its window",
    "unusable": "set aside as unusable",
}
"""Reason for a refusal -> words."""

STAGES: Final[dict[RunStage, str]] = {
    RunStage.BEGUN: "starting",
    RunStage.SNAPSHOT: "building dataset",
    RunStage.REVISING: "rewriting answers",
    RunStage.REPLAY: "making replay data",
    RunStage.TRAINING: "training",
    RunStage.TRAINED: "awaiting the gate",
    RunStage.GATE: "in the gate",
    RunStage.CONTROL: "training the control",
    RunStage.GATED: "publishing",
    RunStage.WAITING: "waiting to resume",
    RunStage.PUBLISHED: "published",
    RunStage.FAILED: "failed",
    RunStage.ERASED: "ended by an erasure",
}


def describe_stage(stage: str) -> tuple[str, str]:
    """Return words for a run's stage and its task: ("in the gate", "candidate: answers"). Both may be unknown."""
    known = run_stage(stage)
    if known is None:
        return stage.replace("_", " "), ""
    return STAGES[known], stage[len(known) :].lstrip(",: ")


def reasons(counts: dict[str, int]) -> str:
    """Return `3 sent again with other content, 1 too large for a batch`, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(
        f"{number(count)} {REASONS.get(name, name.replace('_', ' '))}" for name, count in ordered
    )


def number(value: float | None) -> str:
    """Return `12 345`, `0.617` or `3.1`: grouped digits, else three significant digits; a dash for None."""
    if value is None:
        return DASH
    if float(value).is_integer():
        return f"{int(value):,}".replace(",", THIN)
    return f"{value:,.0f}".replace(",", THIN) if abs(value) >= 1000 else f"{value:.3g}"


def metric(value: float | None) -> str:
    """Return a gate metric with a fixed number of decimals: `0.60`, `18.2` or `1 204`; a dash for None."""
    if value is None:
        return DASH
    size = abs(value)
    return f"{value:.2f}" if size < 10 else f"{value:.1f}" if size < 1000 else number(round(value))


def count(value: int, singular: str, plural: str) -> str:
    """Return `1 batch` or `18 batches`."""
    return f"{number(value)} {singular if value == 1 else plural}"


def duration(seconds: float) -> str:
    """Return a rounded length of time: `40 s`, `12 min`, `3 h` or `2 d`."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size * (2 if unit != "min" else 1.5):
            return f"{round(seconds / size)}{THIN}{unit}"
    return f"{max(0, round(seconds))}{THIN}s"


def ago(moment: datetime, now: datetime) -> str:
    """Return `3 h ago`. The text changes at most once a minute, so the page is not redrawn every second."""
    minutes = (now - moment).total_seconds() // 60
    if minutes < 1:
        return "just now"
    return f"1{THIN}min ago" if minutes < 2 else f"{duration(minutes * 60)} ago"


def timestamp(moment: datetime) -> str:
    """Return `2026-03-04 09:00 UTC`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def parse_time(text: Any) -> datetime | None:
    """Return a time from JSON, or None if `text` is not a time with a time zone."""
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo is not None else None


def short_version(version: str) -> str:
    """Return `v3` for `assistant@v3-1f2e3d4c`, for places where the line is known."""
    return version.rpartition("@")[2].partition("-")[0]
