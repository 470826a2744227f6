"""Votes of users for two rival claims, and which of them leads.

A user has one vote: the newest thing that they said. A claim leads a rival with `LEAD` times its users. Facts change,
and whoever was right a year ago does not come back to say so: so a claim also leads, whatever the number of users, if
enough users said it recently and the votes for it weigh `LEAD` times the rival's when each vote halves in weight every
half-life. Age is counted from the newest vote for either claim, never from a clock, so a dataset depends on nothing but
what was read. Users without recent votes do not count towards the number, so one user alone, however often they repeat
themselves, turns nothing around.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from services.trainer.core.recipe import CHANGED_FACT_USERS, VOTE_HALF_LIFE_DAYS, Recipe

LEAD: Final = 2
"""A claim leads a rival with at least this many times its users, or its weight."""
_DAY_MS: Final = 86_400_000

Votes: TypeAlias = Mapping[str, int]
"""User -> time of the newest statement of the claim, in ms since 1970."""


@dataclass(frozen=True, slots=True)
class ChangeRule:
    """When newer votes outweigh older ones."""

    users: int = CHANGED_FACT_USERS
    """Minimum number of users with a recent vote for the new claim. Recent: at most one half-life old."""
    half_life_days: float = VOTE_HALF_LIFE_DAYS
    """Time in which a vote loses half of its weight."""

    @classmethod
    def of(cls, recipe: Recipe) -> ChangeRule:
        """Return the rule of a recipe."""
        return cls(recipe.changed_fact_users, recipe.vote_half_life_days)

    def has_changed(self, old: Votes, new: Votes) -> bool:
        """Return whether the votes for `new` are so much newer that the fact counts as changed."""
        if len(new) < self.users:
            return False
        half_life = self.half_life_days * _DAY_MS
        newest = max((*old.values(), *new.values()))
        recent = sum(newest - at <= half_life for at in new.values())
        weights = [
            sum(0.5 ** ((newest - at) / half_life) for at in sorted(side.values())) for side in (old, new)
        ]
        return recent >= self.users and weights[1] >= LEAD * weights[0]


def newest_votes(one: Votes, other: Votes) -> tuple[Votes, Votes]:
    """Return the votes without those of users who later said the other. At the same time, both count."""
    return (
        {user: at for user, at in one.items() if at >= other.get(user, at)},
        {user: at for user, at in other.items() if at >= one.get(user, at)},
    )


def leads(one: Votes, other: Votes, rule: ChangeRule) -> bool:
    """Return whether `one` leads `other`."""
    one, other = newest_votes(one, other)
    if rule.has_changed(other, one):
        return True
    return len(one) >= LEAD * len(other) and not rule.has_changed(one, other)
