"""Newline-delimited JSON."""

from __future__ import annotations

from typing import Final

MEDIA_TYPE: Final = "application/x-ndjson"
