"""Decides when a run starts: counts and times in, a decision with its reason out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from services.trainer.core.quiet_hours import zone_of
from services.trainer.core.recipe import Thresholds
from shared.events import from_ms

NOTHING_NEW: Final = "nothing usable is new since the last run"


@dataclass(frozen=True, slots=True)
class NewData:
    """Usable examples that are new since the last run and may train, so those of held-out users are not counted."""

    examples: int
    users: int
    oldest_ms: int | None = None
    """When the oldest of their batches was cut."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a run starts, and why or why not, for the console and for command results."""

    start: bool
    reason: str


def decide(
    new: NewData,
    thresholds: Thresholds,
    now_ms: int,
    *,
    commanded: bool = False,
    after_erasure: bool = False,
    last_run_ms: int | None = None,
) -> Decision:
    """Decide whether a run starts now. A refusal names everything that is missing.

    Args:
        new: what is new since the last run.
        thresholds: how much must be new, the quiet hours, and the interval between runs.
        now_ms: current time.
        commanded: an operator asked for a run: one usable example suffices, at any time.
        after_erasure: a run was ended by an erasure, and this one would replace it: as if commanded.
        last_run_ms: when the last run began; None if there was none.

    """
    counts = f"{new.examples} usable new examples from {new.users} users"
    if new.examples and commanded:
        return Decision(True, f"commanded, with {counts}")
    if new.examples and after_erasure:
        return Decision(True, f"restarted after an erasure, with {counts}")
    if commanded:
        return Decision(False, f"{NOTHING_NEW}: a command needs at least one usable example")
    missing = _missing_data(new, thresholds, now_ms)
    waits = [*([missing] if missing else []), *_pauses(thresholds, now_ms, last_run_ms)]
    if waits:
        return Decision(False, "; ".join([counts if new.examples else NOTHING_NEW, *waits]))
    if new.examples >= thresholds.examples and new.users >= thresholds.users:
        return Decision(True, counts)
    return Decision(True, f"{counts}, the oldest waiting for {_age_s(new, now_ms) / 3600:.1f} h")


def _age_s(new: NewData, now_ms: int) -> float:
    return (now_ms - new.oldest_ms) / 1000 if new.oldest_ms is not None else 0.0


def _missing_data(new: NewData, thresholds: Thresholds, now_ms: int) -> str | None:
    """Return both ways in which the data can become enough, or None if it is."""
    examples, users = thresholds.examples - new.examples, thresholds.users - new.users
    aged, age_h = thresholds.aged_examples - new.examples, thresholds.age_s / 3600
    is_old = _age_s(new, now_ms) >= thresholds.age_s
    if (examples <= 0 and users <= 0) or (new.examples and aged <= 0 and is_old):
        return None
    counts = ((examples, "more examples"), (users, "more users"))
    more = " and ".join(f"{count} {unit}" for count, unit in counts if count > 0)
    many = f"a run needs {thresholds.examples} from {thresholds.users}: waiting for {more}"
    if new.oldest_ms is None:
        return many
    conditions = [f"for {aged} more"] if aged > 0 else []
    if not is_old:
        conditions.append(f"until {_local_time(new.oldest_ms + round(thresholds.age_s * 1000), thresholds)}")
    few = " and ".join(conditions)
    return f"{many}, or {few}: {thresholds.aged_examples} suffice once one has waited {age_h:g} h"


def _pauses(thresholds: Thresholds, now_ms: int, last_run_ms: int | None) -> list[str]:
    """Return what delays a run without a command even if the data is enough."""
    pauses = []
    now = from_ms(now_ms).astimezone(zone_of(thresholds.time_zone))
    end = thresholds.quiet.end_after(now) if thresholds.quiet is not None else None
    if end is not None:
        pauses.append(f"waiting for the end of quiet hours, {_formatted(end, thresholds)}")
    next_ms = (last_run_ms or 0) + round(thresholds.interval_s * 1000)
    if last_run_ms is not None and now_ms < next_ms:
        hours = thresholds.interval_s / 3600
        pauses.append(
            f"waiting until {_local_time(next_ms, thresholds)}: the last run began less than {hours:g} h ago"
        )
    return pauses


def _local_time(moment_ms: int, thresholds: Thresholds) -> str:
    return _formatted(from_ms(moment_ms).astimezone(zone_of(thresholds.time_zone)), thresholds)


def _formatted(moment: datetime, thresholds: Thresholds) -> str:
    return f"{moment:%Y-%m-%d %H:%M} {thresholds.time_zone}"
