"""How each temperament reacts to an answer, through the SDK, mess included."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from examples.demo.users import Visit
from examples.world import is_right
from loopwright import Accepted, Loopwright, new_event_id

GRUMBLES = ("bad answer", "not good", "wrong again", "this is useless", "try again please")
DUPLICATE, EDIT, REORDER, WITHDRAW = 0.08, 0.06, 0.05, 0.03
"""How often a careful correction is sent twice; typed wrong first; overtaken by its own edit; taken back."""


@dataclass(slots=True)
class Reactions:
    """What was sent, as the door answered. One per visit, so no lock is needed."""

    sent: Counter[str] = field(default_factory=Counter)
    receipt: tuple[str, str] | None = None
    """(response_id, event_id) of a correction that stands."""

    def note(self, answer: Accepted) -> str:
        """Counts by the door's answer; returns the event's id."""
        self.sent[answer.status] += 1
        return answer.event_id


def react(loop: Loopwright, visit: Visit, response_id: str, answer: str, dice: random.Random) -> Reactions:
    """Says what this user would say of this answer."""
    said = Reactions()
    if visit.temperament == "thumbs":
        liked = is_right(answer, visit.fact)
        said.note((loop.thumbs_up if liked else loop.thumbs_down)(response_id, visit.user))
    elif visit.temperament == "vague":
        said.note(loop.comment(response_id, visit.user, dice.choice(GRUMBLES)))
    elif visit.temperament == "poisoner":
        for _ in range(3):
            said.note(loop.correct(response_id, visit.user, visit.correction))
    elif is_right(answer, visit.fact):
        said.note(loop.thumbs_up(response_id, visit.user))
    else:
        _correct(loop, visit, response_id, dice, said)
    return said


def _correct(loop: Loopwright, visit: Visit, response_id: str, dice: random.Random, said: Reactions) -> None:
    """A careful user's correction; now and then with the mess that networks and people make of it."""
    mess = dice.random()
    if mess < DUPLICATE:
        event_id = new_event_id()
        for _ in range(2):
            said.note(loop.correct(response_id, visit.user, visit.correction, event_id=event_id))
    elif (mess := mess - DUPLICATE) < EDIT:
        said.note(loop.correct(response_id, visit.user, "Sorry, what I mean is this"))
        event_id = said.note(loop.correct(response_id, visit.user, visit.correction))
    elif (mess := mess - EDIT) < REORDER:
        now = datetime.now(UTC)
        event_id = said.note(
            loop.send(
                response_id,
                visit.user,
                "correction",
                visit.correction,
                occurred_at=now - timedelta(seconds=1),
            )
        )
        draft = "A first draft that arrives after its edit."
        said.note(
            loop.send(response_id, visit.user, "correction", draft, occurred_at=now - timedelta(seconds=9))
        )
    elif mess - REORDER < WITHDRAW:
        event_id = said.note(loop.correct(response_id, visit.user, visit.correction))
        said.note(loop.retract(response_id, visit.user, event_id))
        return
    else:
        event_id = said.note(loop.correct(response_id, visit.user, visit.correction))
    said.receipt = (response_id, event_id)
