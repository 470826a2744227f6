"""What the state may hold that today's rules would not write: values that an earlier release stored, and damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from shared.events import MIN_MS

Values = dict[bytes, bytes]
Change = Callable[[Values], dict[bytes, bytes | None]]


def _edit_joined(edit: Callable[[dict[str, Any]], None]) -> Change:
    def change(found: Values) -> dict[bytes, bytes | None]:
        changed: dict[bytes, bytes | None] = {}
        for key, value in found.items():
            if key.startswith(b"j/"):
                with suppress(ValueError, KeyError, TypeError, AttributeError):  # damaged before
                    joined = json.loads(value)
                    edit(joined)
                    changed[key] = json.dumps(joined).encode()
        return changed

    return change


def _signal_times(at_ms: int) -> Change:
    def edit(joined: dict[str, Any]) -> None:
        for part in ("signals", "events"):
            for entry in joined.get(part, {}).values():
                if part == "signals" or "at_ms" in entry:
                    entry["at_ms"] = at_ms

    return _edit_joined(edit)


def _lose_response(found: Values) -> dict[bytes, bytes | None]:
    """A pending example whose response is gone."""
    return {key: None for key in found if key.startswith(b"a/")}


def _damage(prefix: bytes, damaged: bytes) -> Change:
    def change(found: Values) -> dict[bytes, bytes | None]:
        return {key: damaged for key in found if key.startswith(prefix)}

    return change


CHANGES: tuple[tuple[Change, str], ...] = (
    (_signal_times(MIN_MS - 50_400_000), "signals in the year 0"),
    (_signal_times(10**17), "signals after the year 9999"),
    (_signal_times(-1), "signals just before 1970"),
    (_lose_response, "the response is lost"),
    (_damage(b"a/", b"{"), "an unreadable response"),
    (_damage(b"j/", b"\xff"), "unreadable feedback"),
    (_damage(b"j/", b'{"line": 1, "since_ms": null}'), "feedback of wrong types"),
    (_damage(b"p/", b"[]"), "an unreadable pending example"),
)
"""Changes of the values of one response, with a name. Add new ones here."""
