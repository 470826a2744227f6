"""Learning rate of each step. Pure."""

from __future__ import annotations

import math

from services.trainer.core.recipe import Schedule


def rate_factor(schedule: Schedule, step: int, steps: int, warmup: int) -> float:
    """Return the share of the peak learning rate at a step: a linear warm-up, then the schedule down to 0."""
    rising = (step + 1) / (warmup + 1)
    remaining = max(0.0, min(1.0, (steps - step) / max(1, steps - warmup)))
    match schedule:
        case "linear":
            falling = remaining
        case "cosine":
            falling = (1 - math.cos(math.pi * remaining)) / 2
        case "constant":
            falling = 1.0
    return min(1.0, rising, falling)
