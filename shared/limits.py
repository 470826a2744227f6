"""Sizes that depend on each other: what an API accepts must fit into the batch that a processor cuts.

An example is one response with its feedback. It travels in a batch of at most `BATCH_BYTES`, so a response may take
only what is left after the feedback that it must have room for. `services/processor/core/batches.py` computes with the
same numbers.
"""

from __future__ import annotations

from typing import Final

from shared.events import MAX_TEXT
from shared.topics import BATCH_BYTES

EXAMPLE_FRAME_BYTES: Final = 512
"""Upper bound for the bytes of an example besides its response and its feedback."""
EVENT_FRAME_BYTES: Final = 8 * 1024
"""Upper bound for the bytes of a feedback event besides its text: ids, tags and field names."""
BOOKKEEPING_BYTES: Final = 4 * 1024
"""Upper bound for what the processor notes about one feedback event, besides the event."""
MAX_EVENT_BYTES: Final = 4 * MAX_TEXT + EVENT_FRAME_BYTES
"""Maximum size of a `feedback.events` record as JSON (139,264 bytes). A text of `MAX_TEXT` characters always fits,
unless it consists of control characters, which JSON writes with six bytes each."""
FEEDBACK_ROOM_BYTES: Final = MAX_EVENT_BYTES + BOOKKEEPING_BYTES
"""Room for feedback that every response leaves: one event of maximum size."""
MAX_RESPONSE_BYTES: Final = BATCH_BYTES - EXAMPLE_FRAME_BYTES - FEEDBACK_ROOM_BYTES
"""Maximum size of a `chat.responses` record as JSON (380,416 bytes)."""
MAX_HEADER_BYTES: Final = 16_384
"""Maximum size of all headers of an HTTP request together."""
