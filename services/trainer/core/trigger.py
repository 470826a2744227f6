"""Decides when a run starts: counts and times in, a decision with its reason out."""

from __future__ import annotations

import math
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
    usable: int = 0
    """Usable examples that may train, new or not."""
    gate_items: int = 0
    """The most items that the gate can have: from all usable feedback of held-out users, whether it is new or not.

    An upper bound on purpose. Fewer may count in the end, but a lower estimate could stop the loop for ever.
    """
    gate_users: int = 0
    """Held-out users with feedback that the gate can use."""
    gate_users_needed: int = 0
    """How many the gate needs; 0 if a run need not wait for them."""
    gate_power: str = ""
    """What the gate of a run can show, in one sentence; empty if it is not known."""
    trained: int = 0
    """Examples that the last run trained on; 0 if there was none."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a run starts, and why or why not, for the console and for command results."""

    start: bool
    reason: str


def examples_needed(new: NewData, thresholds: Thresholds) -> int:
    """Return how many new examples start a run: the threshold, or the share of what the last run trained on."""
    return max(thresholds.examples, math.ceil(new.trained * thresholds.grow_percent / 100))


def decide(
    new: NewData,
    thresholds: Thresholds,
    now_ms: int,
    *,
    commanded: bool = False,
    again: bool = False,
    after_erasure: bool = False,
    erased_stable: str | None = None,
    last_run_ms: int | None = None,
    last_replacement_ms: int | None = None,
) -> Decision:
    """Decide whether a run starts now. A refusal names everything that is missing.

    Args:
        new: what is new since the last run.
        thresholds: how much must be new, the quiet hours, and the intervals between runs.
        now_ms: current time.
        commanded: an operator asked for a run: one usable example suffices, at any time.
        again: of the command or of the run to replace: the usable examples need not be new.
        after_erasure: a run was ended by an erasure, and this one would replace it: as if commanded.
        erased_stable: the stable version, if rows that it was trained on were erased and no run has begun since.
        last_run_ms: when the last run began; None if there was none.
        last_replacement_ms: when the last run began that replaced a version after an erasure; None if there was none.

    """
    counts = f"{new.examples} usable new examples from {new.users} users"
    enough = new.usable if again else new.examples
    if enough and (commanded or after_erasure):
        why = f"commanded{' again' if again else ''}" if commanded else "restarted after an erasure"
        on = f", on {new.usable} usable examples" if again else ""
        return Decision(True, "; ".join([f"{why}{on}, with {counts}", *_gate_notes(new, thresholds)]))
    if commanded:
        return Decision(False, _refusal(new, again=again))
    erased = f"an erasure affects stable {erased_stable}" if erased_stable and new.usable else None
    replacement_waits = _waits_after_erasure(thresholds, now_ms, last_replacement_ms)
    if erased and not replacement_waits:
        return Decision(True, f"{erased}: training again on {new.usable} usable examples")
    missing = _missing_data(new, thresholds, now_ms)
    replacing = [f"{erased}: {wait}" for wait in replacement_waits] if erased else []
    blocked = [
        *([missing] if missing else []),
        *pauses(thresholds, now_ms, last_run_ms),
        *(
            f"{short}: waiting for more feedback of held-out users (about 1 in 5 users)"
            for short in _undecidable(new, thresholds)
        ),
    ]
    if blocked:
        return Decision(False, "; ".join([counts if new.examples else NOTHING_NEW, *blocked, *replacing]))
    if new.examples >= examples_needed(new, thresholds) and new.users >= thresholds.users:
        return Decision(True, "; ".join([counts, *_gate_notes(new, thresholds)]))
    waiting = f"{counts}, the oldest waiting for {_age_s(new, now_ms) / 3600:.1f} h"
    return Decision(True, "; ".join([waiting, *_gate_notes(new, thresholds)]))


def _refusal(new: NewData, *, again: bool) -> str:
    if again or not new.usable:
        return f"{'no usable example is collected' if again else NOTHING_NEW}: a command needs at least one"
    return (
        f"{NOTHING_NEW}: use --again (`loopwright train now --again`) to train again on the {new.usable} usable "
        "examples"
    )


def _undecidable(new: NewData, thresholds: Thresholds) -> list[str]:
    """Return that the gate cannot reach a verdict for want of items or users, if that is known already."""
    missing = [
        f"{have} {unit} of {need} needed"
        for have, need, unit in (
            (new.gate_items, thresholds.gate_items, "items"),
            (new.gate_users, new.gate_users_needed, "held-out users"),
        )
        if have < need
    ]
    return [f"the gate would have at most {' and '.join(missing)}"] if missing else []


def _gate_notes(new: NewData, thresholds: Thresholds) -> list[str]:
    """Return that the gate cannot decide, or else what it can show."""
    return _undecidable(new, thresholds) or ([new.gate_power] if new.gate_power else [])


def _waits_after_erasure(thresholds: Thresholds, now_ms: int, last_replacement_ms: int | None) -> list[str]:
    """Return what delays a run that replaces the stable version after an erasure."""
    next_ms = (last_replacement_ms or 0) + round(thresholds.erasure_interval_s * 1000)
    waits = _quiet_hours(thresholds, now_ms)
    if last_replacement_ms is not None and now_ms < next_ms:
        hours = thresholds.erasure_interval_s / 3600
        waits.append(
            f"waiting until {_local_time(next_ms, thresholds)}: the last run for this reason began less than "
            f"{hours:g} h ago"
        )
    return waits


def _age_s(new: NewData, now_ms: int) -> float:
    return (now_ms - new.oldest_ms) / 1000 if new.oldest_ms is not None else 0.0


def _missing_data(new: NewData, thresholds: Thresholds, now_ms: int) -> str | None:
    """Return both ways in which the data can become enough, or None if it is."""
    needed = examples_needed(new, thresholds)
    examples, users = needed - new.examples, thresholds.users - new.users
    aged, age_h = thresholds.aged_examples - new.examples, thresholds.age_s / 3600
    is_old = _age_s(new, now_ms) >= thresholds.age_s
    if (examples <= 0 and users <= 0) or (new.examples and aged <= 0 and is_old):
        return None
    counts = ((examples, "more examples"), (users, "more users"))
    more = " and ".join(f"{count} {unit}" for count, unit in counts if count > 0)
    share = f" ({thresholds.grow_percent:g} % of the {new.trained:,} that the last run trained on)"
    relative = share if needed > thresholds.examples else ""
    many = f"a run needs {needed} from {thresholds.users}{relative}: waiting for {more}"
    if new.oldest_ms is None:
        return many
    conditions = [f"for {aged} more"] if aged > 0 else []
    if not is_old:
        conditions.append(f"until {_local_time(new.oldest_ms + round(thresholds.age_s * 1000), thresholds)}")
    few = " and ".join(conditions)
    return f"{many}, or {few}: {thresholds.aged_examples} suffice once one has waited {age_h:g} h"


def pauses(thresholds: Thresholds, now_ms: int, last_run_ms: int | None) -> list[str]:
    """Return what delays a run without a command even if the data is enough."""
    found = _quiet_hours(thresholds, now_ms)
    next_ms = (last_run_ms or 0) + round(thresholds.interval_s * 1000)
    if last_run_ms is not None and now_ms < next_ms:
        hours = thresholds.interval_s / 3600
        found.append(
            f"waiting until {_local_time(next_ms, thresholds)}: the last run began less than {hours:g} h ago"
        )
    return found


def _quiet_hours(thresholds: Thresholds, now_ms: int) -> list[str]:
    now = from_ms(now_ms).astimezone(zone_of(thresholds.time_zone))
    end = thresholds.quiet.end_after(now) if thresholds.quiet is not None else None
    return [] if end is None else [f"waiting for the end of quiet hours, {_formatted(end, thresholds)}"]


def _local_time(moment_ms: int, thresholds: Thresholds) -> str:
    return _formatted(from_ms(moment_ms).astimezone(zone_of(thresholds.time_zone)), thresholds)


def _formatted(moment: datetime, thresholds: Thresholds) -> str:
    return f"{moment:%Y-%m-%d %H:%M} {thresholds.time_zone}"
