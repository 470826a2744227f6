"""Walks through the state of a partition and drops what it has of users who are erased."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Final

from services.processor.core import batches, join
from services.processor.core.erasure import rules
from services.processor.core.state import Answer, Joined, after, answer_key, batch_key, pending_key
from services.processor.core.wire import read_tally
from shared.records import Output
from shared.topics import FEEDBACK_TALLIES

if TYPE_CHECKING:
    from services.processor.core.step import Turn

WALKED: Final = (b"a/", b"j/", b"t/")
"""Responses, what was said of them, tallies: all keys with something of a user."""


class Walk:
    """One piece of the way. `subjects`: up to which moment what each of them said and asked is dropped."""

    __slots__ = ("_subjects", "_turn", "dropped")

    def __init__(self, turn: Turn, subjects: Mapping[str, int]) -> None:
        self._turn = turn
        self._subjects = subjects
        self.dropped: dict[str, tuple[int, int]] = {}
        """Of each subject so far: responses, signals."""

    def go_on(self, cursor: str, keys: int) -> str | None:
        """From behind `cursor`, so many keys further. Returns where that ended; None if it was the end of all."""
        found = list(islice(self._behind(cursor.encode()), keys))
        for place, value in found:
            if place.startswith(b"a/"):
                answer = Answer.from_json(value)
                if answer.user_id is not None and answer.at_ms <= self._subjects.get(answer.user_id, -1):
                    self._drop(place[2:], answer.user_id)
            elif place.startswith(b"j/"):
                self._take_out(place[2:], Joined.from_json(value))
            else:
                self._drop_tally(place, value)
        return None if len(found) < keys else found[-1][0].decode()

    def _behind(self, cursor: bytes) -> Iterator[tuple[bytes, bytes]]:
        for prefix in WALKED:
            if cursor < after(prefix):
                yield from self._turn.state.scan(max(prefix, cursor + b"\x00"), after(prefix))

    def _drop(self, key: bytes, subject: str) -> None:
        """The subject asked it: the response, what all said of it, its place in the open batch."""
        turn, state = self._turn, self._turn.state
        joined = turn.find(key)
        if joined is None or joined.expired:
            return
        pending = turn.pending(joined.line, key)
        change = rules.drop(joined, set(pending.waiting) if pending else set(), turn.now_ms)
        turn.decide(key, joined, change.decided)
        if pending is not None:
            state.delete(pending_key(joined.line, key))
            batch = turn.open_batch(joined.line)
            batches.take_out(batch, pending)
            state.put(batch_key(joined.line), batch.to_json())
        state.delete(answer_key(key))
        turn.save(key, change.joined, join.expires_at(joined))
        self._count(subject, 1, len(joined.signals))

    def _take_out(self, key: bytes, read: Joined) -> None:
        """What was said of another's response goes, and the example's next revision follows, as after any change."""
        turn, subjects = self._turn, self._subjects
        said = any(said.at_ms <= subjects.get(said.user_id, -1) for said in read.events.values())
        if not said and not any(rules.whose(place) in subjects for place in read.retractions):
            return
        joined = turn.find(key)
        if joined is None:
            return
        expires_at = join.expires_at(joined)
        pending = turn.pending(joined.line, key) if joined.answered else None
        change = rules.take_out(joined, set(pending.waiting) if pending else set(), subjects)
        turn.decide(key, joined, change.decided)
        if change.revised:
            turn.enqueue(key, change, expires_at, pending)
        else:
            turn.save(key, joined, expires_at)
        for signal in change.removed:
            self._count(signal.user_id, 0, 1)

    def _drop_tally(self, place: bytes, value: bytes) -> None:
        tally, partition = read_tally(value), self._turn.partition
        if tally.user_id in self._subjects:
            self._turn.state.delete(place)
            name = f"{tally.version}|{tally.user_id}|{partition}"
            self._turn.outputs.append(Output(FEEDBACK_TALLIES.name, name.encode(), None, (), partition))

    def _count(self, subject: str, responses: int, signals: int) -> None:
        before = self.dropped.get(subject, (0, 0))
        self.dropped[subject] = (before[0] + responses, before[1] + signals)
