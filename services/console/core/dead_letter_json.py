"""Dead letters as JSON, for the console's API."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from services.console.core.responses import Json
from shared.dead_letter_replay import DeadLetter
from shared.dead_letters import record_size
from shared.events import from_ms

MAX_CONTENT_BYTES: Final = 65_536
"""How much of a key or a value is shown."""
MAX_HEADERS: Final = 50


def summary(letter: DeadLetter, size: int, replayed_by: Mapping[str, str]) -> Json:
    """Return a dead letter without its content.

    Args:
        letter: the dead letter.
        size: size of the key and value of the original record, in bytes.
        replayed_by: position of each replayed dead letter -> the command that replayed it.

    """
    origin = letter.origin
    return {
        "position": str(letter.position),
        "at": from_ms(letter.appended_ms).isoformat(),
        "error_class": origin.error_class,
        "message": origin.message,
        "service": origin.service,
        "topic": origin.topic,
        "partition": letter.origin_partition,
        "offset": letter.origin_offset,
        "appended_at": _time(letter.origin_timestamp_ms),
        "omitted": letter.omitted_bytes is not None,
        "replayed_from": letter.replayed_from,
        "replay_count": letter.replay_count,
        "replayed_by": replayed_by.get(str(letter.position)),
        "bytes": letter.omitted_bytes or size,
    }


def details(letter: DeadLetter, replayed_by: Mapping[str, str]) -> Json:
    """Return a dead letter with its content. `replayed_by` is that of `summary`."""
    return summary(letter, record_size(letter.key, letter.value, ()), replayed_by) | {
        "key": _content(letter.key),
        "value": _content(letter.value),
        "headers": [[name, _content(value)] for name, value in letter.headers[:MAX_HEADERS]],
    }


def _time(at_ms: int | None) -> str | None:
    """Return the time, or None if it is missing or out of range: a dead letter may claim any number."""
    try:
        return None if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return None


def _content(content: bytes | None) -> Json | None:
    """Return the first `MAX_CONTENT_BYTES` bytes, as text if they are UTF-8, else as hex."""
    if content is None:
        return None
    head = content[:MAX_CONTENT_BYTES]
    truncated = len(head) < len(content)
    text = _text(head, truncated)
    encoding, data = ("hex", head.hex()) if text is None else ("text", text)
    return {"encoding": encoding, "data": data, "bytes": len(content), "truncated": truncated}


def _text(head: bytes, truncated: bool) -> str | None:
    """Return `head` as text, or None if it is not UTF-8. If it is truncated, its last character may be incomplete."""
    for end in range(len(head), len(head) - (4 if truncated else 1), -1):
        try:
            text = head[:end].decode()
        except UnicodeDecodeError:
            continue
        return None if "\0" in text else text
    return "" if not head else None
