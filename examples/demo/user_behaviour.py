"""How each kind of user reacts to an answer, including duplicates, edits, late events and retractions."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from examples.demo.users import Visit
from examples.world import is_right
from loopwright import Accepted, Loopwright, new_event_id

VAGUE_COMMENTS = ("bad answer", "not good", "wrong again", "this is useless", "try again please")
DUPLICATE, EDIT, REORDER, RETRACT = 0.08, 0.06, 0.05, 0.03
"""Probabilities that a correction is sent twice, edited, sent after its own edit, or retracted."""


@dataclass(slots=True)
class Reactions:
    """Feedback that one visit sent."""

    statuses: Counter[str] = field(default_factory=Counter)
    """Number of events by the status that the feedback service returned."""
    correction: tuple[str, str] | None = None
    """(response_id, event_id) of a correction that was not retracted."""

    def count(self, accepted: Accepted) -> str:
        """Count the event by its status; return its id."""
        self.statuses[accepted.status] += 1
        return accepted.event_id


def react(loop: Loopwright, visit: Visit, response_id: str, answer: str, rng: random.Random) -> Reactions:
    """Send this user's feedback on this answer."""
    reactions = Reactions()
    if visit.temperament == "thumbs":
        liked = is_right(answer, visit.fact)
        reactions.count((loop.thumbs_up if liked else loop.thumbs_down)(response_id, visit.user))
    elif visit.temperament == "vague":
        reactions.count(loop.comment(response_id, visit.user, rng.choice(VAGUE_COMMENTS)))
    elif visit.temperament == "poisoner":
        for _ in range(3):
            reactions.count(loop.correct(response_id, visit.user, visit.correction))
    elif is_right(answer, visit.fact):
        reactions.count(loop.thumbs_up(response_id, visit.user))
    else:
        _correct(loop, visit, response_id, rng, reactions)
    return reactions


def _correct(
    loop: Loopwright, visit: Visit, response_id: str, rng: random.Random, reactions: Reactions
) -> None:
    """Send a careful user's correction, sometimes with the irregularities of real networks and users."""
    chance = rng.random()
    if chance < DUPLICATE:
        event_id = new_event_id()
        for _ in range(2):
            reactions.count(loop.correct(response_id, visit.user, visit.correction, event_id=event_id))
    elif (chance := chance - DUPLICATE) < EDIT:
        reactions.count(loop.correct(response_id, visit.user, "Sorry, what I mean is this"))
        event_id = reactions.count(loop.correct(response_id, visit.user, visit.correction))
    elif (chance := chance - EDIT) < REORDER:
        now = datetime.now(UTC)
        event_id = reactions.count(
            loop.send(
                response_id,
                visit.user,
                "correction",
                visit.correction,
                occurred_at=now - timedelta(seconds=1),
            )
        )
        draft = "A first draft that arrives after its edit."
        reactions.count(
            loop.send(response_id, visit.user, "correction", draft, occurred_at=now - timedelta(seconds=9))
        )
    elif chance - REORDER < RETRACT:
        event_id = reactions.count(loop.correct(response_id, visit.user, visit.correction))
        reactions.count(loop.retract(response_id, visit.user, event_id))
        return
    else:
        event_id = reactions.count(loop.correct(response_id, visit.user, visit.correction))
    reactions.correction = (response_id, event_id)
