"""Quiet hours: a daily span of local time in which no run starts without a command."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo

_SPAN: Final = re.compile(r"^(\d\d:\d\d)-(\d\d:\d\d)$")


@dataclass(frozen=True, slots=True)
class QuietHours:
    """Span from `start` (inclusive) to `end` (exclusive); it crosses midnight if `end` is earlier than `start`."""

    start: time
    end: time

    @classmethod
    def parse(cls, text: str) -> QuietHours | None:
        """Parse a span such as `22:00-06:00`; return None if `text` is blank.

        Raises:
            ValueError: if `text` has another form, or both times are equal.

        """
        if not text.strip():
            return None
        match = _SPAN.match(text.strip())
        if match is None:
            raise ValueError(f"invalid quiet hours {text!r}: expected HH:MM-HH:MM, for example 22:00-06:00")
        hours = cls(*(time.fromisoformat(part) for part in match.groups()))
        if hours.start == hours.end:
            raise ValueError(f"invalid quiet hours {text!r}: start and end must differ")
        return hours

    def __str__(self) -> str:
        return f"{self.start:%H:%M}-{self.end:%H:%M}"

    def contains(self, clock: time) -> bool:
        """Return whether a local time is within the quiet hours."""
        if self.start < self.end:
            return self.start <= clock < self.end
        return clock >= self.start or clock < self.end

    def end_after(self, now: datetime) -> datetime | None:
        """Return the end of the quiet hours that contain `now` (local, with its zone), or None if none do."""
        clock = now.time()
        if not self.contains(clock):
            return None
        day = now.date() + timedelta(days=0 if clock < self.end else 1)
        return datetime.combine(day, self.end, tzinfo=now.tzinfo)


def zone_of(name: str) -> ZoneInfo:
    """Return the time zone of an IANA name. Raises `ValueError` if it is unknown."""
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        raise ValueError(f"unknown time zone {name!r}: expected an IANA name such as Europe/Berlin") from None
