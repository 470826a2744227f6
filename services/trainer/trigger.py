"""When a run starts. Pure: counts and times in, a decision and its reason out."""

from __future__ import annotations

from dataclasses import dataclass

from services.trainer.settings import Thresholds


@dataclass(frozen=True, slots=True)
class Waiting:
    """What is usable, may train, and is new since the last run. Held-out users' corrections are not counted."""

    examples: int
    users: int
    oldest_ms: int | None = None
    """When the batch of the oldest of them was cut."""


@dataclass(frozen=True, slots=True)
class Decision:
    start: bool
    reason: str


def decide(
    waiting: Waiting,
    thresholds: Thresholds,
    now_ms: int,
    *,
    commanded: bool = False,
    anew: bool = False,
) -> Decision:
    """Starts by command, or in place of a run that an erasure ended (`anew`), with anything usable; by itself with
    enough examples of enough users, or with fewer that have waited long."""
    facts = f"{waiting.examples} usable new examples from {waiting.users} users"
    if waiting.examples == 0:
        return Decision(False, "nothing usable is new since the last run")
    if commanded:
        return Decision(True, f"commanded, with {facts}")
    if anew:
        return Decision(True, f"begun anew after an erasure, with {facts}")
    if waiting.examples >= thresholds.examples and waiting.users >= thresholds.users:
        return Decision(True, facts)
    waited_s = (now_ms - waiting.oldest_ms) / 1000 if waiting.oldest_ms is not None else 0.0
    if waiting.examples >= thresholds.aged_examples and waited_s >= thresholds.age_s:
        return Decision(True, f"{facts}, the oldest waiting for {waited_s / 3600:.1f} h")
    return Decision(False, f"{facts}; a run needs {thresholds.examples} from {thresholds.users}")
