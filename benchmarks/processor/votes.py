"""The one-stage job of all arms: dedup by event id, count votes by user. Pure; the standard library alone.

Event `i` of a workload belongs to key `i % keys`: with half as many keys as events, the two of a key lie half a topic
apart. One in a hundred keys gets its first event a second time, which is to be told as a repeat. An output carries the
number of votes seen on its key, so the outputs alone show whether any was lost, doubled or out of order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

State = dict[str, Any]

EVENT_BYTES = 350
STATE_BYTES = 176
"""Of one key after two votes, key included: what the limit of a store's cache is reckoned from."""
REMEMBERED = 8
"""Event ids kept per key, for telling repeats."""
SPREAD = 0x9E3779B97F4A7C15
"""Odd, so multiplying by it modulo 2^64 gives every number another one, with digits that do not compress."""
FILLERS = ("Clear", "Wrong source", "Too long, but right", "Misses the point", "Exactly what I asked for")


def vote(state: State | None, event: dict[str, Any], remembered: int = REMEMBERED) -> tuple[State, State]:
    """(new state, output) of one event. The state given is left as it is."""
    state = state or {"votes": {}, "seen": [], "total": 0, "repeats": 0}
    event_id, user = event["event_id"], event["user_id"]
    repeated = event_id in state["seen"]
    if repeated:
        state = {**state, "repeats": state["repeats"] + 1}
    else:
        votes = state["votes"]
        state = {
            "votes": {**votes, user: votes.get(user, 0) + 1},
            "seen": [*state["seen"], event_id][-remembered:],
            "total": state["total"] + 1,
            "repeats": state["repeats"],
        }
    output = {
        "response_id": event["response_id"],
        "event_id": event_id,
        "user_id": user,
        "votes": state["votes"].get(user, 0),
        "total": state["total"],
        "repeated": repeated,
    }
    return state, output


@dataclass(frozen=True)
class Workload:
    """`events` in all, over `keys`. `repeats`: whether one in a hundred keys gets its first event twice."""

    events: int
    keys: int
    repeats: bool = True

    @classmethod
    def halves(cls, events: int) -> Workload:
        """Two events per key, half a topic apart."""
        return cls(events // 2 * 2, events // 2)

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) of each event, in the order to be sent."""
        return (self.event(i) for i in range(self.events))

    def event(self, i: int) -> tuple[bytes, bytes]:
        key, visit = i % self.keys, i // self.keys
        if visit == 1 and self._is_repeated(key):
            i, visit = key, 0
        name = f"r-{key * SPREAD % 2**64:016x}"
        event_id, user = f"{i * SPREAD % 2**64:016x}{i:016x}", ((key << 1) + visit % 2) * SPREAD % 2**64
        body = (
            f'{{"schema_version":1,"line":"assistant","kind":"thumbs","value":"{("up", "down")[key % 3 == 0]}",'
            f'"response_id":"{name}","event_id":"{event_id}","user_id":"u_{user:016x}","choice":0,"tags":[],'
            f'"comment":"{FILLERS[i % len(FILLERS)]}"'
        )
        padding = EVENT_BYTES - len(body) - len(',"trace":""}')
        trace = f"{i * SPREAD * 3 % 2**64:016x}" * 8
        return name.encode(), (body + ',"trace":"' + trace[:padding] + '"}').encode()

    def _is_repeated(self, key: int) -> bool:
        return self.repeats and key % 100 == 0

    def complaints(
        self, values: Iterable[bytes], loads: Callable[[bytes], Any], *, raw: bool = False
    ) -> list[str]:
        """What is wrong with all outputs of a run; empty if each event has exactly one, with the right count.

        `raw`: the outputs are the events themselves.
        """
        seen, strange, wrong = bytearray(self.events), 0, 0
        for value in values:
            found = loads(value)
            i = int(found["event_id"][16:], 16)
            repeated = bool(found.get("repeated")) if not raw else seen[i] > 0 and self._repeats(i)
            place = i + self.keys if repeated else i
            if repeated and not self._repeats(i):
                strange += 1
                continue
            seen[place] = min(255, seen[place] + 1)
            if not raw and found["total"] != (1 if repeated else i // self.keys + 1):
                wrong += 1
        lost, twice = seen.count(0), sum(1 for times in seen if times > 1)
        counted = {"lost": lost, "doubled": twice, "strange": strange, "wrongly counted": wrong}
        return [f"{count} {what}" for what, count in counted.items() if count]

    def _repeats(self, i: int) -> bool:
        """Whether event `i` is sent a second time."""
        return i < self.keys and self.events > self.keys + i and self._is_repeated(i)
