"""Makes the broker delete erased data from its disk, by filler records appended to the compacted topics. Pure.

Kafka compacts closed segments only, and closes a segment only when something is appended to it. In a quiet partition
erased data would stay on the broker's disk.
"""

from __future__ import annotations

from typing import Final

from services.processor.core.erasure.rules import ErasureProgress
from services.processor.core.turn import PartitionTurn
from shared.records import Output
from shared.topics import DAY_MS, FEEDBACK_TALLIES

FILLERS: Final = 3
"""Kafka removes replaced values after the first, deleted keys after the second; the third is in case it was down."""
FILLER_INTERVAL_MS: Final = DAY_MS + DAY_MS // 24
"""The first append after a day (`segment.ms`) closes a segment, and deletions are kept for a day too."""
TIME_STEP_MS: Final = 600_000
"""How often the time that has passed is stored; more often if fillers are less than a day apart."""
FILLER_KEY: Final = b"erased"
"""A key that no tally has: deleting it changes nothing."""


def pass_time(progress: ErasureProgress, now_ms: int, interval_ms: int) -> None:
    """Note the time of an input record or a tick.

    The time of ticks starts again at the newest record after a restart. What had passed before still counts, except for
    the last part of a step. So fillers come in a partition without records too, however often its process restarts,
    and never too early, before the broker closes the segment.
    """
    passed_ms = None if progress.seen_ms is None else now_ms - progress.seen_ms
    if passed_ms is None or passed_ms < 0:
        progress.seen_ms = now_ms
    elif passed_ms >= min(TIME_STEP_MS, interval_ms // 100):
        progress.seen_ms = now_ms
        progress.filler_in_ms -= passed_ms


def append_filler_if_due(turn: PartitionTurn, progress: ErasureProgress, interval_ms: int) -> None:
    """Append a filler to each compacted topic: to batches, to tallies and, as `progress` changes, to the changelog."""
    if not progress.fillers_left or progress.filler_in_ms > 0:
        return
    progress.fillers_left -= 1
    progress.filler_in_ms = interval_ms
    turn.outbox.outputs.append(Output(FEEDBACK_TALLIES.name, FILLER_KEY, None, (), 0))
    line = progress.filler_line
    # If examples wait, their batch is about to be appended anyway.
    if line and not (batch := turn.state.open_batch(line)).examples:
        turn.send_batch(line, batch, "erasure", [])
    if not progress.fillers_left:
        progress.filler_line = ""


def schedule_fillers(progress: ErasureProgress, interval_ms: int) -> None:
    """Plan all fillers, starting one interval from now."""
    progress.fillers_left, progress.filler_in_ms = FILLERS, interval_ms
