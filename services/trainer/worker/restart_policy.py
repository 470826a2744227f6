"""What follows when a run's process ends without having come to the end. Pure; the counts are kept with the run.

A kill says nothing about its cause: a person, a machine that went down, the kernel that needed memory. One or two are
nothing. Several at the same place, without a new checkpoint between them, are taken for a lack of memory: the pieces in
which a step is computed are halved. What is killed on and on ends with a reason, so that the line is free again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

KILLS_BEFORE_HALVING = 3
MAX_KILLS = 12
"""At one place in a row."""
MAX_ERRORS = 3
"""In a whole run. They are errors of the program: the same again is likely to end the same."""
LONGEST_WAIT_S = 60.0

EndCause = Literal["stopped", "killed", "error", "disk", "memory"]
"""How a process ended: in order; by a signal, or with whoever started it; with an error; as the disk was full; as
memory did not suffice, and it has taken smaller pieces already."""


@dataclass(frozen=True, slots=True)
class Attempts:
    """`deaths`, `waits`: kills, and all ends but ordered ones, at `place` in a row. `under_way`: one began of which no
    end is known."""

    place: str = ""
    deaths: int = 0
    waits: int = 0
    under_way: bool = False

    @classmethod
    def of(cls, parts: dict[str, Any]) -> Attempts:
        return cls(**{name: parts[name] for name in cls.__slots__ if name in parts})

    def parts(self) -> dict[str, Any]:
        return asdict(self)

    def at(self, place: str) -> Attempts:
        """Further on, everything is counted anew."""
        return self if place == self.place else Attempts(place=place, under_way=self.under_way)


@dataclass(frozen=True, slots=True)
class RestartDecision:
    """Again after `wait_s`, with smaller pieces first where `halve`; or, where `failed` gives a reason, not."""

    wait_s: float = 0.0
    halve: bool = False
    failed: str | None = None


def record_start(attempts: Attempts) -> Attempts:
    """As it is to be written down before a process is started."""
    return replace(attempts, under_way=True)


def decide(
    attempts: Attempts, end: EndCause, *, errors: int, by_kernel: bool, smaller: bool
) -> tuple[Attempts, RestartDecision]:
    """`errors`: in this run so far. `by_kernel`: the kernel has killed for memory meanwhile. `smaller`: what was under
    way can take smaller pieces."""
    if end == "stopped":
        return replace(attempts, under_way=False), RestartDecision()
    deaths = attempts.deaths + (end == "killed")
    after = replace(attempts, deaths=deaths, waits=attempts.waits + 1, under_way=False)
    wait = 0.0 if end == "memory" else backoff_s(after.waits)
    if end == "error" and errors >= MAX_ERRORS:
        return after, RestartDecision(failed=f"tried {MAX_ERRORS} times")
    if end != "killed":
        return after, RestartDecision(wait)
    if by_kernel and not smaller and deaths >= KILLS_BEFORE_HALVING:
        return after, RestartDecision(
            failed=f"the kernel killed its process {deaths} times for want of memory: {MEMORY_REMEDY}"
        )
    if deaths >= MAX_KILLS:
        return after, RestartDecision(
            failed=f"its process was killed {deaths} times without coming further, as where memory does not suffice: "
            f"{MEMORY_REMEDY}"
        )
    return after, RestartDecision(wait, halve=smaller and (by_kernel or deaths % KILLS_BEFORE_HALVING == 0))


MEMORY_REMEDY = (
    "give the trainer more memory, or lower LOOPWRIGHT_TRAINER_MAX_TOKENS or LOOPWRIGHT_TRAINER_BATCH_SIZE"
)


def backoff_s(times: int) -> float:
    """Before trying again at the same place: at once, then 2 s, 4 s, ... up to a minute."""
    return 0.0 if times <= 1 else min(LONGEST_WAIT_S, 2.0 ** (times - 1))
