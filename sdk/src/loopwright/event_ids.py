"""Event ids: UUIDv7, so that they sort by the time they were made (RFC 9562, section 5.7)."""

from __future__ import annotations

import secrets
import time
import uuid


def new_event_id() -> str:
    """A fresh id: 48 bits of Unix milliseconds, version and variant, 74 random bits."""
    value = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))
