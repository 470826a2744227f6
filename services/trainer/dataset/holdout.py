"""Split of the users of a line: a fixed fifth is held out of training to evaluate versions, the same in every run."""

from __future__ import annotations

import hashlib
from typing import Final

HOLDOUT_SHARE: Final = 0.2


def hash_fraction(line: str, name: str) -> float:
    """Return a number in [0, 1) that is fixed for a line and a name, and independent between lines."""
    digest = hashlib.blake2b(name.encode(), key=line.encode()[:64], digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def is_held_out(line: str, user_id: str) -> bool:
    """Return whether the feedback of a user evaluates versions and never trains."""
    return hash_fraction(line, user_id) < HOLDOUT_SHARE
