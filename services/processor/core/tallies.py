"""One user's reactions to one version, as absolute counters: sending them again is harmless. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from msgspec import Struct

from services.processor.core.state import SeenEvent, Signal
from shared.feedback_kinds import KIND_BY_NAME


def count(
    tally: Struct,
    removed: Iterable[Signal],
    added: Sequence[Signal],
    vague: Iterable[SeenEvent],
    responded_at: str,
) -> None:
    """Update the counters of a `TallyOut` as `FeedbackKind` says. `vague` are events that were too vague for a signal.

    No counter falls below zero: a removed signal may have been counted before the tally was deleted. Signals that say
    how satisfied the user is also change the `vote`; `responded_at` is the time of the response that they are about.
    """
    for event in vague:
        counter = KIND_BY_NAME[event.kind].counter
        assert isinstance(counter, str), f"{event.kind}: a kind with a hint has one counter"
        _add(tally, counter, 1)
    for sign, signals in ((-1, removed), (1, added)):
        for signal in signals:
            _add_signal(tally, signal, sign)
    votes = [vote for signal in added if (vote := _vote(signal)) is not None]
    if votes:
        tally.vote, tally.vote_on = sum(votes) / len(votes), responded_at  # type: ignore[attr-defined]


def _vote(signal: Signal) -> float | None:
    return KIND_BY_NAME[signal.kind].satisfaction(msgspec.json.decode(signal.value))


def _add_signal(tally: Struct, signal: Signal, sign: int) -> None:
    kind = KIND_BY_NAME[signal.kind]
    value = msgspec.json.decode(signal.value)
    counter = kind.counter if isinstance(kind.counter, str) else kind.counter.get(str(value))
    if counter is not None:
        _add(tally, counter, sign)
    if kind.sum_counter is not None and isinstance(value, int):
        _add(tally, kind.sum_counter, sign * value)


def _add(tally: Struct, counter: str, amount: int) -> None:
    setattr(tally, counter, max(0, getattr(tally, counter) + amount))
