"""Extent of the fault tests: `LOOPWRIGHT_FAULT_SEEDS` workloads for each fault, one by default (`make test-fault`: 20).

With one seed the tests run in their short form, as part of `make test`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

SEEDS = int(os.environ.get("LOOPWRIGHT_FAULT_SEEDS", "1"))
RARE_SEEDS = max(1, SEEDS // 4)
"""Workloads for faults that do not depend on a randomly chosen moment."""


def select_variants(variants: Sequence[T]) -> Sequence[T]:
    """Return all variants of a fault, or the first two in the short form."""
    return variants if SEEDS > 1 else variants[:2]
