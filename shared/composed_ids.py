"""Ids composed of other ids. Pure.

An id may hold any printable character and has up to 128 of them (`shared.events.Id`), so joining two with a separator
is ambiguous, and the result may be too long to be an id itself.
"""

from __future__ import annotations

import hashlib
from typing import Final
from urllib.parse import unquote

MAX_ID: Final = 128
"""The most characters of an `Id`."""


def join_ids(*parts: str, separator: str = "/") -> str:
    """Join parts. Different parts give different results: `%` and the separator within a part are percent-encoded.

    The result has no maximum length, so it is for headers and keys, not for a field of type `Id`.
    """
    return separator.join(
        [part if separator not in part and "%" not in part else _encode(part, separator) for part in parts]
    )


def split_ids(joined: str, separator: str = "/") -> list[str]:
    """Return the parts that `join_ids` joined."""
    return [unquote(part) for part in joined.split(separator)]


def digest_id(prefix: str, *parts: str) -> str:
    """Return an `Id` that stands for any number of parts of any length: `prefix` and 128 bits of their sha256."""
    return prefix + hashlib.sha256(join_ids(*parts).encode()).hexdigest()[:32]


def shortened_id(name: str) -> str:
    """Return `name`, or an `Id` that stands for it if it is too long to be one."""
    return name if len(name) <= MAX_ID else digest_id("sha256:", name)


def _encode(part: str, separator: str) -> str:
    return part.replace("%", "%25").replace(separator, f"%{ord(separator):02X}")
