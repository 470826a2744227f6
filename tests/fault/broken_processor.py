"""The processor on an engine that is broken on purpose: positions are committed before the transaction.

`python -m tests.fault.broken_processor` in place of `python -m services.processor`; only the loop's fault test does so.
"""

from __future__ import annotations

from services.processor import __main__ as entry
from shared.stream import host
from tests.fault.broken_engines import PositionsFirst


class LeisurelyPositionsFirst(PositionsFirst):
    """So slow between its two commits that kills from outside fall there."""

    pause = 0.3


host.Engine = LeisurelyPositionsFirst  # type: ignore[misc]

if __name__ == "__main__":
    entry.main()
