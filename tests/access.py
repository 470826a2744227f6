"""API keys for tests: a file with a key per name, and the callers of the matrix test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from loopwright.api_keys import ApiKeyFile
from shared.adapters.access import Access
from shared.adapters.clock import SystemClock
from shared.adapters.key_file import KeyFile
from shared.ports import Clock


def make_keys(path: Path, scopes: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Write a file with a key of each name and its scopes, and return the keys."""
    file = ApiKeyFile(path)
    return {name: file.create(name, allowed)[0] for name, allowed in scopes.items()}


def expiring_key(path: Path, name: str, scopes: Sequence[str], lifetime: timedelta) -> str:
    """Add a key that expires, and return it."""
    return ApiKeyFile(path).create(name, scopes, lifetime)[0]


def access_of(path: Path, *hosts: str, clock: Clock | None = None) -> Access:
    """Return the access that needs the keys of a file."""
    clock = clock or SystemClock()
    return Access(KeyFile(path, clock), hosts=hosts, clock=clock)


def bearer(key: str) -> dict[str, str]:
    """Return the header with a key."""
    return {"Authorization": f"Bearer {key}"}
