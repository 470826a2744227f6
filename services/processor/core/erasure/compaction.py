"""What the broker needs before what was erased is gone from its disk too: appends to the compacted topics, days apart.

It cleans closed segments alone, and only an append closes one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from services.processor.core.erasure.rules import Course
from services.processor.core.state import OpenBatch, batch_key
from services.processor.core.wire import batch_of
from shared.records import Output
from shared.topics import DAY_MS, FEEDBACK_TALLIES
from shared.versions import batch_name

if TYPE_CHECKING:
    from services.processor.core.step import Turn

TOUCHES: Final = 3
"""Kafka removes old values after the first, deleted keys after the second; one more, for a broker that was away."""
TOUCH_MS: Final = DAY_MS + DAY_MS // 24
"""A segment is closed by the first append after a day (`segment.ms`); deletions are kept for a day too."""
TOUCH_KEY: Final = b"erased"
"""Nobody's tally: deleting it leaves nothing."""


def touch(turn: Turn, course: Course, every_ms: int) -> None:
    """Appends to each compacted topic: batches, tallies, and by the course that changes the changelog."""
    course.touches -= 1
    course.touch_ms = turn.now_ms + every_ms
    turn.outputs.append(Output(FEEDBACK_TALLIES.name, TOUCH_KEY, None, (), turn.partition))
    line = course.touch_line
    if line and not (batch := turn.open_batch(line)).examples:
        # Where examples wait, their batch is about to be appended anyway.
        batch_id = batch_name(line, turn.partition, batch.number)
        made = batch_of(line, batch_id, turn.partition, batch.number, "erasure", [], turn.now)
        turn.send_batch(batch_id, made)
        turn.state.put(batch_key(line), OpenBatch(number=batch.number + 1).to_json())
    if not course.touches:
        course.touch_line = ""


def touch_later(course: Course, now_ms: int, every_ms: int) -> None:
    """Counts anew from now."""
    course.touches, course.touch_ms = TOUCHES, now_ms + every_ms
