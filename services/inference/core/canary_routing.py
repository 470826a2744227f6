"""Choice of the version for a user: a pure function of the rollout record and the user's pseudonym."""

from __future__ import annotations

from shared.canary_assignment import user_point
from shared.versions import RolloutRecord, VersionRef


def choose_version(record: RolloutRecord, user: str | None) -> VersionRef:
    """Return the canary for `record.share` of the users, and the stable version for everyone else.

    Requests without a user get the stable version. The choice is sticky: a user gets the same version on every
    replica, and a user who gets the canary at 5 % still gets it at 25 % (`user_point`).

    Args:
        record: The rollout record in force.
        user: The user's pseudonym, or None.

    """
    if record.canary is None or user is None:
        return record.stable
    sampled = user_point(user, record.line, record.canary.version) < record.share
    return record.canary if sampled else record.stable
