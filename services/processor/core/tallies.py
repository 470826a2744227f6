"""What each user thinks of each version, as absolute counters: sending them again is harmless."""

from __future__ import annotations

from collections.abc import Iterable

from services.processor.core.state import Signal
from services.processor.core.written import TallyOut


def count(tally: TallyOut, removed: Iterable[Signal], added: Iterable[Signal], vague_comments: int) -> None:
    """These signals went and came. Ratings are summed; all others are counted."""
    tally.comments += vague_comments
    for sign, signals in ((-1, removed), (1, added)):
        for signal in signals:
            if signal.kind == "rating":
                tally.ratings += sign
                tally.rating_sum += sign * int(bytes(signal.value))
            else:
                counter = _counter(signal)
                setattr(tally, counter, getattr(tally, counter) + sign)


def _counter(signal: Signal) -> str:
    return bytes(signal.value)[1:-1].decode() if signal.kind == "thumbs" else f"{signal.kind}s"
