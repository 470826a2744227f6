"""What each user thinks of each version, as absolute counters: sending them again is harmless."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shared.events import Signal, Tally, from_ms


def changed_users(before: Mapping[str, Signal], after: Mapping[str, Signal]) -> set[str]:
    """The users whose signals differ."""
    differing = before.keys() ^ after.keys()
    return {(before.get(event_id) or after[event_id]).user_id for event_id in differing}


def counted(
    tally: Tally, removed: Iterable[Signal], added: Iterable[Signal], now_ms: int, *, vague_comments: int = 0
) -> Tally:
    """The tally after these signals went and came. Ratings are summed; all others are counted."""
    figures = {name: getattr(tally, name) for name in _COUNTERS}
    figures["comments"] += vague_comments
    for sign, signals in ((-1, removed), (1, added)):
        for signal in signals:
            if signal.kind == "rating" and isinstance(signal.value, int):
                figures["ratings"] += sign
                figures["rating_sum"] += sign * signal.value
            else:
                figures[_counter(signal)] += sign
    return tally.model_copy(update=figures | {"updated_at": from_ms(now_ms)})


_COUNTERS = ("up", "down", "ratings", "rating_sum", "corrections", "comments", "preferences")


def _counter(signal: Signal) -> str:
    return str(signal.value) if signal.kind == "thumbs" else f"{signal.kind}s"
