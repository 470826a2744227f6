"""Which users never train: a fixed keyed fifth of the line's users, the same in every run."""

from __future__ import annotations

import hashlib

HOLDOUT_SHARE = 0.2


def hash_fraction(line: str, name: str) -> float:
    """A number in [0, 1) that is fixed for a line and a name, and independent between lines."""
    digest = hashlib.blake2b(name.encode(), key=line.encode()[:64], digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def is_held_out(line: str, user_id: str) -> bool:
    """Whether all that this user says measures versions and trains none."""
    return hash_fraction(line, user_id) < HOLDOUT_SHARE
