"""Shrinks a history that violates I13 to a small one that violates it in the same way."""

from __future__ import annotations

from tests.fault.i13.history import History, fair
from tests.fault.i13.oracle import name_of, violations

MAX_ATTEMPTS = 400


def shrink(history: History, name: str) -> History:
    """Return the history without the steps that are not needed for a violation of this name."""
    attempts = 0
    steps = list(history.steps)
    size = max(1, len(steps) // 2)
    while size and attempts < MAX_ATTEMPTS:
        start = 0
        while start < len(steps) and attempts < MAX_ATTEMPTS:
            fewer = list(fair(steps[:start] + steps[start + size :]))
            attempts += 1
            if any(name_of(found) == name for found in violations(history.with_steps(fewer))):
                steps = fewer
            else:
                start += size
        size //= 2
    return history.with_steps(steps)


def describe(history: History, found: list[str]) -> str:
    """Return the violations of a history and the smallest history that was found for the first of them."""
    smallest = shrink(history, name_of(found[0]))
    still = [each for each in violations(smallest) if name_of(each) == name_of(found[0])]
    lines = "\n".join(each[:1_000] for each in still[:5])
    return f"I13 is violated:\n{lines}\nby this history, shrunk from {len(history.steps)} steps:\n{smallest}"
