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
FILLER_KEY: Final = b"erased"
"""A key that no tally has: deleting it changes nothing."""


def append_filler_if_due(turn: PartitionTurn, progress: ErasureProgress, interval_ms: int) -> None:
    """Append a filler to each compacted topic: to batches, to tallies and, as `progress` changes, to the changelog."""
    if not progress.fillers_left or turn.now_ms < progress.next_filler_ms:
        return
    progress.fillers_left -= 1
    progress.next_filler_ms = turn.now_ms + interval_ms
    turn.outbox.outputs.append(Output(FEEDBACK_TALLIES.name, FILLER_KEY, None, (), turn.outbox.partition))
    line = progress.filler_line
    # If examples wait, their batch is about to be appended anyway.
    if line and not (batch := turn.state.open_batch(line)).examples:
        turn.send_batch(line, batch, "erasure", [])
    if not progress.fillers_left:
        progress.filler_line = ""


def schedule_fillers(progress: ErasureProgress, now_ms: int, interval_ms: int) -> None:
    """Plan all fillers, starting one interval from now."""
    progress.fillers_left, progress.next_filler_ms = FILLERS, now_ms + interval_ms
