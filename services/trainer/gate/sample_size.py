"""How much more data would decide. An estimate: it takes the win rate seen for the true one."""

from __future__ import annotations

import numpy as np
from scipy.special import bdtrc

from services.trainer.gate.confidence_intervals import CONFIDENCE

MOST = 5_000
"""Decided items. What would take more is not told apart from stable by this gate."""


def decided_needed(wins: int, losses: int) -> int | None:
    """The least number of decided items at which the exact lower bound of the win rate lies above one half if the share
    of wins stays what it is. None: no share above one half, or more than `MOST`.

    At that number the odds are about even that the bound does; the true share may be another.
    """
    seen = wins + losses
    if seen == 0 or wins <= losses:
        return None
    sizes = np.arange(seen, MOST + 1)
    won = np.floor(sizes * (wins / seen) + 1e-9)
    # The lower bound lies above 1/2 exactly where so many wins or more are rarer than (1 - confidence) / 2 by a coin.
    enough = bdtrc(won - 1, sizes, 0.5) < (1 - CONFIDENCE) / 2
    return int(sizes[enough.argmax()]) if enough.any() else None


def more_items(wins: int, losses: int, items: int, least: int) -> int | None:
    """How many items more, ties counted in as often as they were seen; never below what is missing to `least`. None as
    `decided_needed`, unless items are missing in any case."""
    missing = max(0, least - items)
    needed = decided_needed(wins, losses)
    if needed is None:
        return missing or None
    whole = -(-needed * items // (wins + losses))
    return max(missing, whole - items)
