"""When a run starts. Pure: counts and times in, a decision and its reason out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from services.trainer.core.quiet_hours import zone_of
from services.trainer.core.recipe import Thresholds
from shared.events import from_ms

NOTHING_NEW = "nothing usable is new since the last run"


@dataclass(frozen=True, slots=True)
class NewData:
    """What is usable, may train, and is new since the last run. Held-out users' corrections are not counted."""

    examples: int
    users: int
    oldest_ms: int | None = None
    """When the batch of the oldest of them was cut."""


@dataclass(frozen=True, slots=True)
class Decision:
    start: bool
    reason: str


def decide(
    waiting: NewData,
    thresholds: Thresholds,
    now_ms: int,
    *,
    commanded: bool = False,
    anew: bool = False,
    began_ms: int | None = None,
) -> Decision:
    """Starts by command, or in place of a run that an erasure ended (`anew`), with anything usable, whatever the hour;
    by itself with enough examples of enough users, or with fewer that have waited long, but neither in quiet hours nor
    within the interval after the last run, which began at `began_ms`. A refusal names all that is waited for."""
    facts = f"{waiting.examples} usable new examples from {waiting.users} users"
    if waiting.examples and commanded:
        return Decision(True, f"commanded, with {facts}")
    if waiting.examples and anew:
        return Decision(True, f"begun anew after an erasure, with {facts}")
    if commanded:
        return Decision(False, f"{NOTHING_NEW}: a command needs one usable example at least")
    lack = _lack(waiting, thresholds, now_ms)
    waits = [*([lack] if lack else []), *_rests(thresholds, now_ms, began_ms)]
    if waits:
        return Decision(False, "; ".join([facts if waiting.examples else NOTHING_NEW, *waits]))
    if waiting.examples >= thresholds.examples and waiting.users >= thresholds.users:
        return Decision(True, facts)
    return Decision(True, f"{facts}, the oldest waiting for {_waited_s(waiting, now_ms) / 3600:.1f} h")


def _waited_s(waiting: NewData, now_ms: int) -> float:
    return (now_ms - waiting.oldest_ms) / 1000 if waiting.oldest_ms is not None else 0.0


def _lack(waiting: NewData, thresholds: Thresholds, now_ms: int) -> str | None:
    """What the data still lack, both ways in which they may become enough; None where they are."""
    examples, users = thresholds.examples - waiting.examples, thresholds.users - waiting.users
    aged, age_h = thresholds.aged_examples - waiting.examples, thresholds.age_s / 3600
    is_old = _waited_s(waiting, now_ms) >= thresholds.age_s
    if (examples <= 0 and users <= 0) or (waiting.examples and aged <= 0 and is_old):
        return None
    counts = ((examples, "more examples"), (users, "more users"))
    more = " and ".join(f"{n} {what}" for n, what in counts if n > 0)
    told = f"a run needs {thresholds.examples} from {thresholds.users}: waits for {more}"
    if waiting.oldest_ms is None:
        return told
    fewer = [f"for {aged} more"] if aged > 0 else []
    if not is_old:
        fewer.append(f"until {_at(waiting.oldest_ms + round(thresholds.age_s * 1000), thresholds)}")
    way = " and ".join(fewer)
    return f"{told}, or {way}: {thresholds.aged_examples} will do once one has waited {age_h:g} h"


def _rests(thresholds: Thresholds, now_ms: int, began_ms: int | None) -> list[str]:
    """What keeps a run from beginning by itself although the data may be enough."""
    rests = []
    now = from_ms(now_ms).astimezone(zone_of(thresholds.time_zone))
    end = thresholds.quiet.end_after(now) if thresholds.quiet is not None else None
    if end is not None:
        rests.append(f"waits for the end of quiet hours, {_told(end, thresholds)}")
    next_ms = (began_ms or 0) + round(thresholds.interval_s * 1000)
    if began_ms is not None and now_ms < next_ms:
        hours = thresholds.interval_s / 3600
        rests.append(f"waits until {_at(next_ms, thresholds)}: the last run began less than {hours:g} h ago")
    return rests


def _at(moment_ms: int, thresholds: Thresholds) -> str:
    return _told(from_ms(moment_ms).astimezone(zone_of(thresholds.time_zone)), thresholds)


def _told(moment: datetime, thresholds: Thresholds) -> str:
    return f"{moment:%Y-%m-%d %H:%M} {thresholds.time_zone}"
