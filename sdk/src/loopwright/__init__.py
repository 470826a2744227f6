"""Python client for Loopwright: send users' feedback, follow its outcome, and operate the loop.

    from loopwright import Loopwright

    with Loopwright() as loop:
        sent = loop.correct(response_id, user_id="u-17", text="Wellington is the capital.")
        print(loop.receipt(response_id, sent.event_id).detail)

`AsyncLoopwright` has the same methods as coroutines. `BackgroundLoopwright` sends from a thread, so that an app never
waits. `loopwright.integrations` records the answers of an app's models. Apps that write to Kafka directly use
`loopwright.kafka`, with the extra `loopwright[kafka]`.
"""

from loopwright.async_client import AsyncLoopwright
from loopwright.background import BackgroundLoopwright, Counts
from loopwright.client import Loopwright
from loopwright.errors import (
    Conflict,
    Denied,
    Invalid,
    InvalidRecord,
    LoopwrightError,
    NotDelivered,
    NotFound,
    Overloaded,
    Problem,
    QueueFull,
    StillRunning,
    Unavailable,
    Unreachable,
)
from loopwright.event_ids import new_event_id
from loopwright.feedback_kinds import FeedbackKind
from loopwright.models import (
    Accepted,
    BrowserToken,
    CanaryArm,
    CanaryTest,
    Command,
    CommandKind,
    CommandResult,
    DeadLetter,
    DeadLetterContent,
    DeadLetterPage,
    Diff,
    Erasure,
    Figure,
    GateReport,
    GateResult,
    GateTest,
    Lineage,
    LineageBatch,
    LineageEvent,
    LineageResponse,
    Quarantine,
    QuarantinedEvent,
    Receipt,
    RecordContent,
    Recorded,
    RolloutState,
    RowResult,
    Serving,
    Status,
    Trace,
    TraceResponse,
    TraceRun,
    Version,
)
from loopwright.retry import Retry
from loopwright.wire import FeedbackValue

__version__ = "0.1.0"

__all__ = [
    "Accepted",
    "AsyncLoopwright",
    "BackgroundLoopwright",
    "BrowserToken",
    "CanaryArm",
    "CanaryTest",
    "Command",
    "CommandKind",
    "CommandResult",
    "Conflict",
    "Counts",
    "DeadLetter",
    "DeadLetterContent",
    "DeadLetterPage",
    "Denied",
    "Diff",
    "Erasure",
    "FeedbackKind",
    "FeedbackValue",
    "Figure",
    "GateReport",
    "GateResult",
    "GateTest",
    "Invalid",
    "InvalidRecord",
    "Lineage",
    "LineageBatch",
    "LineageEvent",
    "LineageResponse",
    "Loopwright",
    "LoopwrightError",
    "NotDelivered",
    "NotFound",
    "Overloaded",
    "Problem",
    "Quarantine",
    "QuarantinedEvent",
    "QueueFull",
    "Receipt",
    "RecordContent",
    "Recorded",
    "Retry",
    "RolloutState",
    "RowResult",
    "Serving",
    "Status",
    "StillRunning",
    "Trace",
    "TraceResponse",
    "TraceRun",
    "Unavailable",
    "Unreachable",
    "Version",
    "new_event_id",
]
