"""Simulated users of a world: who asks what, and what they say about the answer. Pure.

Most feedback on a wrong answer is a correction and most on a right one is a thumb up, as in `SHARES_WRONG` and
`SHARES_RIGHT`. Some users err: they like a wrong answer, dislike a right one, or correct with what answers another
question. Where a fact has a wrong answer that people believe, a fixed minority of the users corrects with it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from benchmarks.make_batches import UserFeedback
from benchmarks.worlds.world import Conversation, Fact, World
from services.trainer.dataset.holdout import is_held_out

Reaction = Literal["correction", "mistake", "up", "down", "stars", "comment"]
SHARES_RIGHT: Final[dict[Reaction, float]] = {"up": 0.82, "stars": 0.10, "comment": 0.04, "down": 0.04}
SHARES_WRONG: Final[dict[Reaction, float]] = {
    "correction": 0.80,
    "mistake": 0.02,
    "down": 0.10,
    "comment": 0.05,
    "up": 0.03,
}
MINORITY: Final = 0.15
"""Share of the users who believe the wrong answer of a fact that has one."""
CARELESS: Final = 0.15
"""Share of the corrections that are typed in lower case and without a full stop."""
POPULAR: Final = 3
"""Every third fact is asked for twice as often as the others."""
PRAISE: Final = ("Exactly what I needed.", "Thanks, that is it.", "Right!", "Good, and short.")
COMPLAINTS: Final = (
    "No, that's wrong.",
    "This does not answer my question.",
    "Far too vague.",
    "Where does that come from?",
)
EMPTY_ANSWER: Final = "(no answer)"
"""What users see if the model generates nothing."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A conversation that a user has about a fact."""

    user: str
    fact: Fact
    conversation: Conversation


@dataclass(frozen=True, slots=True)
class BaseAnswer:
    """What the base answered, and whether it ended the answer itself."""

    text: str
    ended: bool


def asked(world: World, seed: int, examples: int | None = None) -> list[Asked]:
    """Return what users ask, in order, until `examples` of them are of users who are not held out.

    Users are differently active. No user asks the same twice.
    """
    rng = random.Random(f"{world.name} {seed}")
    users = [f"{world.name}-user-{number:03}" for number in range(1, world.users + 1)]
    activity = [rng.uniform(0.5, 2.0) for _ in users]
    wanted = world.examples if examples is None else examples
    found: dict[tuple[str, Conversation], Asked] = {}
    training = 0
    for fact, conversation in _dealt(world.facts, rng):
        (user,) = rng.choices(users, activity)
        if (user, conversation) in found:
            continue
        found[user, conversation] = Asked(user, fact, conversation)
        training += not is_held_out(world.line, user)
        if training == wanted:
            break
    return list(found.values())


def _dealt(facts: Sequence[Fact], rng: random.Random) -> Iterator[tuple[Fact, Conversation]]:
    """Yield facts for ever, each with a wording. All wordings of a fact are used before one is repeated."""
    left: dict[str, list[Conversation]] = {}
    while True:
        deck = [*facts, *facts[::POPULAR]]
        rng.shuffle(deck)
        for fact in deck:
            wordings = left.get(fact.id) or rng.sample(fact.asked, len(fact.asked))
            left[fact.id] = wordings
            yield fact, wordings.pop()


def feedback(
    world: World, seed: int, questions: Sequence[Asked], answers: Sequence[BaseAnswer]
) -> list[UserFeedback]:
    """Return one item of feedback for each question. `answers` are the base's, in the same order."""
    rng = random.Random(f"{world.name} feedback {seed}")
    believers = set(rng.sample(range(1, world.users + 1), round(MINORITY * world.users)))
    believing = {f"{world.name}-user-{number:03}" for number in believers}
    given = []
    for item, answer in zip(questions, answers, strict=True):
        draw = random.Random(f"{world.name} {seed} {item.user} {item.conversation}")
        given.append(_react(world, item, answer, draw, believes=item.user in believing))
    return given


def _react(
    world: World, item: Asked, answer: BaseAnswer, rng: random.Random, *, believes: bool
) -> UserFeedback:
    right = item.fact.is_right(answer.text)
    if believes and item.fact.false_answer:
        return _given(item, answer, "correction", item.fact.false_answer)
    shares = SHARES_RIGHT if right else SHARES_WRONG
    (reaction,) = rng.choices(list(shares), list(shares.values()))
    match reaction:
        case "correction":
            return _given(item, answer, "correction", _typed(rng.choice(item.fact.answers), rng))
        case "mistake":
            others = [fact for fact in world.facts if fact.id != item.fact.id]
            return _given(item, answer, "correction", rng.choice(rng.choice(others).answers))
        case "stars":
            return _given(item, answer, "rating", rng.choice((4, 5, 5)))
        case "comment":
            return _given(item, answer, "comment", rng.choice(PRAISE if right else COMPLAINTS))
        case thumb:
            return _given(item, answer, "thumbs", thumb)


def _typed(text: str, rng: random.Random) -> str:
    """Return a text as a user types it, sometimes carelessly. Code in backticks stays as it is."""
    careless = rng.random() < CARELESS
    return text.removesuffix(".").lower() if careless and "`" not in text else text


def _given(
    item: Asked,
    answer: BaseAnswer,
    kind: Literal["correction", "thumbs", "rating", "comment"],
    value: str | int,
) -> UserFeedback:
    *earlier, (_, question) = item.conversation
    return UserFeedback(
        item.user,
        question,
        answer.text or EMPTY_ANSWER,
        kind,
        value,
        truncated=not answer.ended,
        earlier=tuple(earlier),
    )
