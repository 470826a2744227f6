"""One-stage job of all arms: drop repeated event ids and count votes per user. Pure; standard library only.

Event `i` of a workload belongs to key `i % keys`. With half as many keys as events, the two events of a key are half a
topic apart. For one key in a hundred the second event repeats the first, and its output must say so. Each output
carries the number of votes on its key, so the outputs show whether an event was lost, duplicated or out of order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

State = dict[str, Any]

EVENT_BYTES = 350
STATE_BYTES = 176
"""Size of one key and its state after two votes. The cache sizes of the stores are derived from it."""
REMEMBERED_EVENTS = 8
"""Event ids kept per key to detect repetitions."""
HASH_MULTIPLIER = 0x9E3779B97F4A7C15
"""Odd, so multiplying by it modulo 2^64 maps each number to a different one, with digits that hardly compress."""
FILLERS = ("Clear", "Wrong source", "Too long, but right", "Misses the point", "Exactly what I asked for")


def vote(
    state: State | None, event: dict[str, Any], remembered: int = REMEMBERED_EVENTS
) -> tuple[State, State]:
    """Return (new state, output) of one event, without modifying the given state."""
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
    """`events` events over `keys` keys. With `repeats`, the first event of one key in a hundred is sent twice."""

    events: int
    keys: int
    repeats: bool = True

    @classmethod
    def two_per_key(cls, events: int) -> Workload:
        """Return a workload with two events per key, half a topic apart."""
        return cls(events // 2 * 2, events // 2)

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) of each event in order."""
        return (self.event(i) for i in range(self.events))

    def event(self, i: int) -> tuple[bytes, bytes]:
        """Return (key, value) of event `i`."""
        key, visit = i % self.keys, i // self.keys
        if visit == 1 and self._is_repeated(key):
            i, visit = key, 0
        name = f"r-{key * HASH_MULTIPLIER % 2**64:016x}"
        event_id, user = (
            f"{i * HASH_MULTIPLIER % 2**64:016x}{i:016x}",
            ((key << 1) + visit % 2) * HASH_MULTIPLIER % 2**64,
        )
        body = (
            f'{{"schema_version":1,"line":"assistant","kind":"thumbs","value":"{("up", "down")[key % 3 == 0]}",'
            f'"response_id":"{name}","event_id":"{event_id}","user_id":"u_{user:016x}","choice":0,"tags":[],'
            f'"comment":"{FILLERS[i % len(FILLERS)]}"'
        )
        padding = EVENT_BYTES - len(body) - len(',"trace":""}')
        trace = f"{i * HASH_MULTIPLIER * 3 % 2**64:016x}" * 8
        return name.encode(), (body + ',"trace":"' + trace[:padding] + '"}').encode()

    def _is_repeated(self, key: int) -> bool:
        return self.repeats and key % 100 == 0

    def find_errors(
        self, values: Iterable[bytes], loads: Callable[[bytes], Any], *, raw: bool = False
    ) -> list[str]:
        """Return the errors in the outputs of a run. There are none if each event has one output with the right count.

        With `raw`, the outputs are copies of the events.
        """
        seen, unexpected, wrong = bytearray(self.events), 0, 0
        for value in values:
            output = loads(value)
            i = int(output["event_id"][16:], 16)
            repeated = bool(output.get("repeated")) if not raw else seen[i] > 0 and self._repeats(i)
            index = i + self.keys if repeated else i
            if repeated and not self._repeats(i):
                unexpected += 1
                continue
            seen[index] = min(255, seen[index] + 1)
            if not raw and output["total"] != (1 if repeated else i // self.keys + 1):
                wrong += 1
        lost, duplicated = seen.count(0), sum(1 for times in seen if times > 1)
        counts = {"lost": lost, "duplicated": duplicated, "unexpected": unexpected, "miscounted": wrong}
        return [f"{count} {error}" for error, count in counts.items() if count]

    def _repeats(self, i: int) -> bool:
        """Return whether event `i` is sent twice."""
        return i < self.keys and self.events > self.keys + i and self._is_repeated(i)
