"""Scan of a partition's state that removes what it holds of erased users. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from services.processor.core.erasure import rules
from services.processor.core.join import retraction_owner
from services.processor.core.state import JoinedResponse, StoredResponse, encode, prefix_end
from services.processor.core.turn import PartitionTurn
from shared.errors import Malformed
from shared.events import Tally

PREFIXES: Final = (b"a/", b"j/", b"t/")
"""Responses, their feedback, and tallies: all keys with data of a user."""
BYTES_PER_PIECE: Final = 4 << 20
"""Bytes of values read in one turn; the last value may exceed it."""
OUTPUTS_PER_PIECE: Final = 1_000
"""Records sent in one turn; those for the last key may exceed it."""


class StateScan:
    """One piece of the scan. `cutoffs`: user -> the append time in ms up to which that user's data is removed."""

    __slots__ = ("_cutoffs", "_turn", "removed")

    def __init__(self, turn: PartitionTurn, cutoffs: Mapping[str, int]) -> None:
        self._turn = turn
        self._cutoffs = cutoffs
        self.removed: dict[str, tuple[int, int]] = {}
        """user -> (responses, signals) removed in this piece."""

    def advance(self, cursor: str, at_most: int) -> str | None:
        """Visit up to `at_most` keys after `cursor`. Return the last of them, or None at the end of the state.

        Stops earlier once it has read `BYTES_PER_PIECE` or caused `OUTPUTS_PER_PIECE`. Holds one value at a time.
        """
        outputs = self._turn.outbox.outputs
        most_outputs = len(outputs) + OUTPUTS_PER_PIECE
        count = size = 0
        for place, value in self._after(cursor.encode()):
            self._visit(place, value)
            count, size = count + 1, size + len(value)
            if count >= at_most or size >= BYTES_PER_PIECE or len(outputs) >= most_outputs:
                return place.decode()
        return None

    def _visit(self, place: bytes, value: bytes) -> None:
        if place.startswith(b"a/"):
            response = StoredResponse.read(value)
            if response is None:
                self._delete_unreadable(place, value)
            elif response.user_id is not None and rules.covers(
                self._cutoffs, response.user_id, response.at_ms
            ):
                self._erase_response(place[2:], response.user_id)
        elif place.startswith(b"j/"):
            joined = JoinedResponse.read(value)
            if joined is None:
                self._delete_unreadable(place, value)
            else:
                self._remove_feedback(place[2:], joined)
        else:
            self._visit_tally(place, value)

    def _delete_unreadable(self, place: bytes, value: bytes) -> None:
        """Delete a value that cannot be read if it names an erased user: it may hold content of that user."""
        if any(encode(user_id)[1:-1] in place + value for user_id in self._cutoffs):
            self._turn.state.store.delete(place)

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

    def _visit_tally(self, place: bytes, value: bytes) -> None:
        try:
            tally = Tally.from_json(value)
        except Malformed:
            self._delete_unreadable(place, value)
            return
        if tally.user_id in self._cutoffs:
            self._turn.delete_tally(place, tally)

    def _count(self, user_id: str, responses: int, signals: int) -> None:
        before = self.removed.get(user_id, (0, 0))
        self.removed[user_id] = (before[0] + responses, before[1] + signals)
