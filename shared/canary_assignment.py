"""Which users get the canary. Pure: inference assigns by it, and the rollout checks that the users were assigned so."""

from __future__ import annotations

import hashlib


def user_point(user: str, line: str, canary: str) -> float:
    """Return the user's position in [0, 1): the first 53 bits of sha256(user, line, canary) as a fraction.

    Users below the canary's share get the canary. The position does not depend on the share, so a user who has the
    canary keeps it when the share grows. Each canary is tried on a different sample of users.
    """
    digest = hashlib.sha256("\0".join((user, line, canary)).encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
