"""Quiet hours: a part of each day, by the clock on the wall of one place, in which no run begins by itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

SPAN = re.compile(r"^(\d\d:\d\d)-(\d\d:\d\d)$")


@dataclass(frozen=True, slots=True)
class QuietHours:
    """From `start` up to, not including, `end`; past midnight where `end` is the earlier one."""

    start: time
    end: time

    @classmethod
    def parse(cls, told: str) -> QuietHours | None:
        """Reads `22:00-06:00`; None for nothing. Raises ValueError."""
        if not told.strip():
            return None
        found = SPAN.match(told.strip())
        if found is None:
            raise ValueError(f"{told!r} are no hours: write them as 22:00-06:00")
        quiet = cls(*(time.fromisoformat(part) for part in found.groups()))
        if quiet.start == quiet.end:
            raise ValueError(f"{told!r} is no hour or all of them: let them begin and end at different times")
        return quiet

    def __str__(self) -> str:
        return f"{self.start:%H:%M}-{self.end:%H:%M}"

    def holds(self, clock: time) -> bool:
        """Whether the clock on the wall shows a quiet time."""
        if self.start < self.end:
            return self.start <= clock < self.end
        return clock >= self.start or clock < self.end

    def end_after(self, now: datetime) -> datetime | None:
        """When the quiet hours end that `now` (with its zone) is in; None if it is in none."""
        clock = now.time()
        if not self.holds(clock):
            return None
        day = now.date() + timedelta(days=0 if clock < self.end else 1)
        return datetime.combine(day, self.end, tzinfo=now.tzinfo)


def zone_of(name: str) -> ZoneInfo:
    """Raises ValueError for a name that is no IANA time zone."""
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        raise ValueError(f"{name!r} is no time zone: give an IANA name such as Europe/Berlin") from None
