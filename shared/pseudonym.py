"""Pseudonyms of user ids. The HTTP APIs replace user ids before they enter the log."""

from __future__ import annotations

import hashlib
import hmac

from shared.user_ids import normalize_user_id


class Pseudonymiser:
    """HMAC-SHA256 with one key per deployment, shared by `feedback` and `inference`.

    A user id has the same pseudonym in every Unicode form, and as long as the key stays the same; it cannot be computed
    or reversed without the key. After a key rotation, earlier records can no longer be linked to their users, so erase
    before rotating.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, user_id: str) -> str:
        """Return the pseudonym: `u_` and 32 hex digits (128 bits)."""
        name = normalize_user_id(user_id).encode()
        return "u_" + hmac.new(self._key, name, hashlib.sha256).hexdigest()[:32]
