"""How much the fault tests try: `LOOPWRIGHT_FAULT_SEEDS` workloads for each fault (`make test-fault`: 20), or one.

With one seed it is the short form, as among all tests: of faults with many varieties it tries the first two.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

SEEDS = int(os.environ.get("LOOPWRIGHT_FAULT_SEEDS", "1"))
RARE_SEEDS = max(1, SEEDS // 4)
"""For faults that do not depend on a moment that chance picks."""


def varieties(of: Sequence[T]) -> Sequence[T]:
    """All, or the first two in the short form."""
    return of if SEEDS > 1 else of[:2]
