"""Scan of a partition's state that removes what it holds of erased users. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Final

from services.processor.core.erasure import rules
from services.processor.core.join import retraction_owner
from services.processor.core.state import JoinedResponse, StoredResponse, prefix_end
from services.processor.core.turn import PartitionTurn
from shared.events import Tally

PREFIXES: Final = (b"a/", b"j/", b"t/")
"""Responses, their feedback, and tallies: all keys with data of a user."""


class StateScan:
    """One piece of the scan. `cutoffs`: user -> the append time in ms up to which that user's data is removed."""

    __slots__ = ("_cutoffs", "_turn", "removed")

    def __init__(self, turn: PartitionTurn, cutoffs: Mapping[str, int]) -> None:
        self._turn = turn
        self._cutoffs = cutoffs
        self.removed: dict[str, tuple[int, int]] = {}
        """user -> (responses, signals) removed in this piece."""

    def advance(self, cursor: str, at_most: int) -> str | None:
        """Visit up to `at_most` keys after `cursor`. Return the last of them, or None at the end of the state."""
        found = list(islice(self._after(cursor.encode()), at_most))
        for place, value in found:
            if place.startswith(b"a/"):
                response = StoredResponse.from_json(value)
                if response.user_id is not None and rules.covers(
                    self._cutoffs, response.user_id, response.at_ms
                ):
                    self._erase_response(place[2:], response.user_id)
            elif place.startswith(b"j/"):
                self._remove_feedback(place[2:], JoinedResponse.from_json(value))
            else:
                self._delete_tally(place, Tally.from_json(value))
        return None if len(found) < at_most else found[-1][0].decode()

    def _after(self, cursor: bytes) -> Iterator[tuple[bytes, bytes]]:
        for prefix in PREFIXES:
            if cursor < prefix_end(prefix):
                yield from self._turn.state.store.scan(max(prefix, cursor + b"\x00"), prefix_end(prefix))

    def _erase_response(self, key: bytes, user_id: str) -> None:
        """Remove a response that the user asked for, with everyone's feedback on it."""
        turn = self._turn
        joined = turn.load(key)
        if joined is None or joined.expired:
            return
        pending = turn.state.pending(joined.line, key)
        change = rules.erase_response(joined, pending.waiting if pending else (), turn.now_ms)
        turn.outbox.outcomes(key, joined, change.outcomes)
        if pending is not None:
            turn.remove_from_batch(key, joined.line, pending)
        turn.state.delete_response(key)
        turn.state.put_joined(key, change.joined)
        self._count(user_id, 1, len(joined.signals))

    def _remove_feedback(self, key: bytes, stored: JoinedResponse) -> None:
        """Remove users' feedback on another user's response. The example's next revision follows."""
        turn, cutoffs = self._turn, self._cutoffs
        has_events = any(rules.covers(cutoffs, seen.user_id, seen.at_ms) for seen in stored.events.values())
        if not has_events and not any(retraction_owner(waiting) in cutoffs for waiting in stored.retractions):
            return
        joined = turn.load(key)
        if joined is None:
            return
        pending = turn.pending(key, joined)
        change = rules.remove_users(joined, pending.waiting if pending else (), cutoffs)
        turn.outbox.outcomes(key, joined, change.outcomes)
        if change.revised:
            turn.put_in_batch(key, change, pending)
        else:
            turn.state.put_joined(key, joined)
        for signal in change.removed:
            self._count(signal.user_id, 0, 1)

    def _delete_tally(self, place: bytes, tally: Tally) -> None:
        if tally.user_id in self._cutoffs:
            self._turn.state.store.delete(place)
            self._turn.outbox.delete_tally(tally.version, tally.user_id)

    def _count(self, user_id: str, responses: int, signals: int) -> None:
        before = self.removed.get(user_id, (0, 0))
        self.removed[user_id] = (before[0] + responses, before[1] + signals)
