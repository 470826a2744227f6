"""Decide whether and when to restart a run's process that ended early. No I/O and no clock.

A kill does not say why it happened: an operator, a machine that went down, or the kernel when memory ran out. One or
two kills are ignored. Several at the same position, without a new checkpoint between them, are taken for a lack of
memory, and the run's batches are halved (`run/batch_sizes.py`). A process that runs out of memory halves them itself.
If they cannot be smaller, it is tried a few more times, because other processes may have used the memory. A run that
keeps being killed or starved fails with a reason, so the line can train again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Final, Literal

KILLS_BEFORE_HALVING: Final = 3
MAX_KILLS: Final = 12
"""Kills at one position in a row after which the run fails."""
MAX_ERRORS: Final = 3
"""Errors in a whole run after which it fails. They are errors of the program, which a retry is likely to repeat."""
MAX_STARVED: Final = 4
"""Times that memory may not suffice for the smallest batches at one position before the run fails."""
STARVED_WAIT_S: Final = 30.0
"""Shortest wait after memory did not suffice for the smallest batches."""
MAX_WAIT_S: Final = 60.0
MEMORY_REMEDY: Final = (
    "give the trainer more memory, or lower LOOPWRIGHT_TRAINER_MAX_TOKENS or LOOPWRIGHT_TRAINER_RANK"
)

EndCause = Literal["stopped", "killed", "error", "disk", "peer", "memory", "starved"]
"""Why a process ended early: it was asked to stop; by a signal, or together with the service; with an unexpected error;
the disk was full; a process on another machine was lost; memory did not suffice, and the process has halved its batches
itself; memory did not suffice even for the smallest batches."""


@dataclass(frozen=True, slots=True)
class Attempts:
    """Early ends of a run's process. Stored with the run, so that a crash of the machine counts too.

    Attributes:
        position: How far the run had come.
        kills: Kills at this position in a row.
        starved: Ends at this position because memory did not suffice for the smallest batches.
        early_ends: Early ends of any cause except "stopped" at this position in a row.
        running: A process was started, and its end has not been recorded.

    """

    position: str = ""
    kills: int = 0
    starved: int = 0
    early_ends: int = 0
    running: bool = False

    @classmethod
    def from_json(cls, text: bytes) -> Attempts:
        """Return the attempts that `to_json` wrote."""
        return cls(**json.loads(text))

    def to_json(self) -> bytes:
        """Return the attempts as JSON."""
        return json.dumps(asdict(self)).encode()

    def at(self, position: str) -> Attempts:
        """Return the attempts at `position`: these if the run is still there, else none."""
        return self if position == self.position else Attempts(position=position, running=self.running)


@dataclass(frozen=True, slots=True)
class RestartDecision:
    """Restart after `wait_s` seconds, with half the batches if `halve`; or fail the run if `failure` says why."""

    wait_s: float = 0.0
    halve: bool = False
    failure: str | None = None


def record_start(attempts: Attempts) -> Attempts:
    """Return the attempts to store before a process is started."""
    return replace(attempts, running=True)


def decide(
    attempts: Attempts, end: EndCause, *, errors: int, oom_killed: bool, can_halve: bool
) -> tuple[Attempts, RestartDecision]:
    """Return the attempts to store after a process ended, and what to do.

    Args:
        attempts: The stored attempts, at the position where the process ended.
        end: Why it ended.
        errors: Unexpected errors of this run so far, including this one.
        oom_killed: The kernel counted a kill for memory while the process ran.
        can_halve: The run can use smaller batches at this position.

    """
    if end == "stopped":
        return replace(attempts, running=False), RestartDecision()
    kills = attempts.kills + (end == "killed")
    after = replace(
        attempts,
        kills=kills,
        starved=attempts.starved + (end == "starved"),
        early_ends=attempts.early_ends + 1,
        running=False,
    )
    wait = 0.0 if end == "memory" else backoff_s(after.early_ends)
    if end == "starved":
        if after.starved >= MAX_STARVED:
            return after, RestartDecision(
                failure=f"memory did not suffice {after.starved} times, even with the smallest batches: {MEMORY_REMEDY}"
            )
        return after, RestartDecision(max(STARVED_WAIT_S, wait))
    if end == "error" and errors >= MAX_ERRORS:
        return after, RestartDecision(failure=f"tried {MAX_ERRORS} times")
    if end != "killed":
        return after, RestartDecision(wait)
    if oom_killed and not can_halve and kills >= KILLS_BEFORE_HALVING:
        return after, RestartDecision(
            failure=f"the kernel killed its process {kills} times because memory ran out: {MEMORY_REMEDY}"
        )
    if kills >= MAX_KILLS:
        return after, RestartDecision(
            failure=f"its process was killed {kills} times without progress, possibly because memory ran out: "
            f"{MEMORY_REMEDY}"
        )
    return after, RestartDecision(wait, halve=can_halve and (oom_killed or kills % KILLS_BEFORE_HALVING == 0))


def backoff_s(early_ends: int) -> float:
    """Return the seconds to wait after this many early ends in a row: 0, 2, 4, 8 and so on, up to `MAX_WAIT_S`."""
    return 0.0 if early_ends <= 1 else min(MAX_WAIT_S, 2.0 ** (early_ends - 1))
