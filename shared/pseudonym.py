"""User ids become pseudonyms at the doors, before they enter the log."""

from __future__ import annotations

import hashlib
import hmac


class Pseudonymiser:
    """HMAC-SHA256 under one key per deployment, shared by `feedback` and `inference`.

    The same user id gives the same pseudonym for as long as the key stands; without the key it cannot be turned back.
    Rotating the key makes earlier records unlinkable, for erasure too: erase before rotating.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, user_id: str) -> str:
        """`u_` and 32 hex digits (128 bits)."""
        return "u_" + hmac.new(self._key, user_id.encode(), hashlib.sha256).hexdigest()[:32]
