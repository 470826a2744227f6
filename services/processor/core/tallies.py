"""What each user thinks of each version, as absolute counters: sending them again is harmless."""

from __future__ import annotations

from collections.abc import Iterable

from services.processor.core.state import Signal
from services.processor.core.wire import TallyOut


def count(tally: TallyOut, removed: Iterable[Signal], added: Iterable[Signal], vague_comments: int) -> None:
    """These signals went and came. Ratings are summed; all others are counted.

    Never below zero: what goes may have been counted before an erasure took the tally away.
    """
    tally.comments += vague_comments
    for sign, signals in ((-1, removed), (1, added)):
        for signal in signals:
            if signal.kind == "rating":
                tally.ratings = max(0, tally.ratings + sign)
                tally.rating_sum = max(0, tally.rating_sum + sign * int(bytes(signal.value)))
            else:
                counter = _counter(signal)
                setattr(tally, counter, max(0, getattr(tally, counter) + sign))


def _counter(signal: Signal) -> str:
    return bytes(signal.value)[1:-1].decode() if signal.kind == "thumbs" else f"{signal.kind}s"
