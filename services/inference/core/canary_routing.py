"""Which version answers whom: a pure function of the rollout record and the user."""

from __future__ import annotations

import hashlib

from shared.versions import RolloutRecord, VersionRef


def choose_version(record: RolloutRecord, user: str | None) -> VersionRef:
    """The canary for `record.share` of the users, the stable for the others and for requests without a
    user.

    `user` is the pseudonym. The same user gets the same answer on every replica for as long as the canary
    stands, and whoever saw the canary at 5 % still sees it at 25 %: the user's point in [0, 1) does not
    depend on the share. Another canary draws other users.
    """
    if record.canary is None or user is None:
        return record.stable
    return (
        record.canary
        if user_point(user, record.line, record.canary.version) < record.share
        else record.stable
    )


def user_point(user: str, line: str, canary: str) -> float:
    """Where the user stands in [0, 1): the first 8 bytes of sha256(user, line, canary) as a fraction."""
    digest = hashlib.sha256("\0".join((user, line, canary)).encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
