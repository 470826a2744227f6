"""Choice of the version for a user: a pure function of the rollout record and the user's pseudonym."""

from __future__ import annotations

import hashlib

from shared.versions import RolloutRecord, VersionRef


def choose_version(record: RolloutRecord, user: str | None) -> VersionRef:
    """Return the canary for `record.share` of the users, and the stable version for everyone else.

    Requests without a user get the stable version. The choice is sticky: a user gets the same version on every
    replica, and a user who gets the canary at 5 % still gets it at 25 %, because `user_point` does not depend on the
    share. Each canary is tried on a different sample of users.

    Args:
        record: The rollout record in force.
        user: The user's pseudonym, or None.

    """
    if record.canary is None or user is None:
        return record.stable
    sampled = user_point(user, record.line, record.canary.version) < record.share
    return record.canary if sampled else record.stable


def user_point(user: str, line: str, canary: str) -> float:
    """Return the user's position in [0, 1): the first 53 bits of sha256(user, line, canary) as a fraction."""
    digest = hashlib.sha256("\0".join((user, line, canary)).encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
