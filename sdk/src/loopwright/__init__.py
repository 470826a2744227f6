"""Loopwright's client: send users' feedback, follow what became of it, operate the loop.

from loopwright import Loopwright

with Loopwright() as loop:
    sent = loop.correct(response_id, user_id="u-17", text="Wellington is the capital.")
    print(loop.receipt(response_id, sent.event_id).detail)
"""

from loopwright.async_client import AsyncLoopwright
from loopwright.client import Loopwright
from loopwright.errors import (
    Conflict,
    Denied,
    Invalid,
    LoopwrightError,
    NotFound,
    Overloaded,
    Problem,
    StillRunning,
    Unavailable,
    Unreachable,
)
from loopwright.event_ids import new_event_id
from loopwright.models import (
    Accepted,
    Command,
    CommandResult,
    Content,
    DeadLetter,
    DeadLetterContent,
    DeadLetterPage,
    Diff,
    Erasure,
    Figure,
    GateReport,
    Held,
    Lineage,
    Quarantine,
    Receipt,
    Recorded,
    Serving,
    Status,
    Trace,
    Version,
)
from loopwright.retry import Retry

__version__ = "0.1.0"

__all__ = [
    "Accepted",
    "AsyncLoopwright",
    "Command",
    "CommandResult",
    "Conflict",
    "Content",
    "DeadLetter",
    "DeadLetterContent",
    "DeadLetterPage",
    "Denied",
    "Diff",
    "Erasure",
    "Figure",
    "GateReport",
    "Held",
    "Invalid",
    "Lineage",
    "Loopwright",
    "LoopwrightError",
    "NotFound",
    "Overloaded",
    "Problem",
    "Quarantine",
    "Receipt",
    "Recorded",
    "Retry",
    "Serving",
    "Status",
    "StillRunning",
    "Trace",
    "Unavailable",
    "Unreachable",
    "Version",
    "new_event_id",
]
