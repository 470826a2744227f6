"""Ids of feedback events: UUIDv7 (RFC 9562, section 5.7), which sort by creation time."""

from __future__ import annotations

import secrets
import time
import uuid


def new_event_id() -> str:
    """Return a new id: 48 bits of Unix time in milliseconds, version and variant, and 74 random bits."""
    value = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))
