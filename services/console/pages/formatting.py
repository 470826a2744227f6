"""Numbers and times as people read them, and the words for what the services name by code. Pure."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

THIN = "\N{NARROW NO-BREAK SPACE}"

OUTCOMES: dict[str, str] = {
    "batched": "in a training batch",
    "tally_only": "counted, nothing to train on",
    "superseded": "replaced by a newer word of its user",
    "duplicate": "sent again, counts once",
    "retracted": "taken back by its user",
    "applied_retract": "took another back",
    "unmatched": "its answer never came",
    "late": "came after the window",
    "erased": "erased on request",
    "dead": "could not be read",
    "pending": "no outcome yet",
}
"""Outcome -> what it means, in the order in which they are shown."""

STAGES: dict[str, str] = {
    "begun": "preparing the data",
    "snapshot": "preparing the data",
    "replay": "preparing replay",
    "train": "training",
    "training": "training",
    "trained": "trained, the gate is next",
    "gate": "in the gate",
    "gating": "in the gate",
    "gated": "through the gate, being published",
    "tested": "through the gate, being published",
    "waiting": "waiting to go on",
    "published": "published",
    "failed": "failed",
    "erased": "ended by an erasure",
}
"""A run's stage -> words."""


def stage_of(run: str) -> str:
    """Words for a run's stage. The gate says what it is at (`gate, stable: answers`); an unknown one stays."""
    if run.startswith("gate, "):
        return f"in the {run}"
    return STAGES.get(run, run.replace("_", " "))


def number(value: float | None) -> str:
    """`12 345`, `0.617`, `3.1`: whole numbers grouped, others to three figures; a dash for none."""
    if value is None:
        return "–"
    if float(value).is_integer():
        return f"{int(value):,}".replace(",", THIN)
    return f"{value:,.0f}".replace(",", THIN) if abs(value) >= 1000 else f"{value:.3g}"


def measured(value: float | None) -> str:
    """A figure of the gate, with as many places as one compares by: `0.60`, `18.2`, `1 204`; a dash for none."""
    if value is None:
        return "–"
    size = abs(value)
    return f"{value:.2f}" if size < 10 else f"{value:.1f}" if size < 1000 else number(round(value))


def count(value: int, one: str, many: str) -> str:
    return f"{number(value)} {one if value == 1 else many}"


def span(seconds: float) -> str:
    """A length of time, rounded to what matters: `40 s`, `12 min`, `3 h`, `2 d`."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size * (2 if unit != "min" else 1.5):
            return f"{round(seconds / size)}{THIN}{unit}"
    return f"{max(0, round(seconds))}{THIN}s"


def ago(moment: datetime, now: datetime) -> str:
    """Changes at most once a minute, so that what shows it stands still."""
    minutes = (now - moment).total_seconds() // 60
    if minutes < 1:
        return "just now"
    return f"1{THIN}min ago" if minutes < 2 else f"{span(minutes * 60)} ago"


def when(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def moment(text: Any) -> datetime | None:
    """A time that a service wrote; None where it is not one."""
    try:
        read = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return read if read.tzinfo is not None else None


def short(version: str) -> str:
    """`assistant@v3-1f2e3d4c` -> `v3`: enough where the line is known."""
    return version.rpartition("@")[2].partition("-")[0]


def figure(value: Any) -> float | None:
    """A number from Redis, where it is one."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if number else None


def whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
