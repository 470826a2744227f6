"""One user's reactions to one version, as absolute counters: sending them again is harmless. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from services.processor.core.state import Signal


def count(tally: Struct, removed: Iterable[Signal], added: Iterable[Signal], vague_comments: int) -> None:
    """Update the counters of a `TallyOut`: ratings are summed, all other signals are counted.

    No counter falls below zero: a removed signal may have been counted before an erasure deleted the tally.
    """
    _add(tally, "comments", vague_comments)
    for sign, signals in ((-1, removed), (1, added)):
        for signal in signals:
            if signal.kind == "rating":
                _add(tally, "ratings", sign)
                _add(tally, "rating_sum", sign * int(bytes(signal.value)))
            elif signal.kind == "thumbs":
                _add(tally, bytes(signal.value)[1:-1].decode(), sign)
            else:
                _add(tally, f"{signal.kind}s", sign)


def _add(tally: Struct, counter: str, amount: int) -> None:
    setattr(tally, counter, max(0, getattr(tally, counter) + amount))
