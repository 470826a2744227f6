"""A simulated service: users ask, judge some answers, and candidates and a control answer the judged questions again.

Vectorised over services that differ by chance only. What stable knows, which facts a candidate fixes, and what flips by
chance are correlated within a fact and within a user, some facts are popular, and some users are active. So items are
as dependent as in production, in two directions at once.

An answer is right or wrong. A wrong answer can also look a little better or worse than another wrong one, by chance.
Flips happen in both directions equally often over all questions asked, so a candidate that learned nothing is right as
often as stable. On the judged questions this does not hold: users correct what stable got wrong more often than they
like what it got right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

Bools: TypeAlias = NDArray[np.bool_]
Integers: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]

JUDGEMENTS: Final = 10.0
"""Answers that a user judges, on average. The trigger's defaults (200 examples of 20 users) ask for as many."""
ACTIVITY_SIGMA: Final = 1.0
"""Spread of the users' activity (log-normal): the most active tenth asks about 40 % of the questions."""
FACTS: Final = 300
POPULARITY: Final = 1.0
"""The n-th fact is asked for n ** -1 as often as the first, which is a sixth of all questions."""
CORRECTS: Final = 0.5
"""Share of the wrong answers that a user corrects."""
OTHER_ANSWER: Final = 0.1
"""Share of the served answers that sampling makes independent of the greedy answer."""
LIKENESS_KNOWN: Final = (0.6, 0.1)
"""Correlation of what stable knows within a fact, and within a user."""
LIKENESS_FLIPS: Final = (0.4, 0.1)
"""Correlation of flips within a fact, and within a user."""
CHUNK: Final = 250


@dataclass(frozen=True, slots=True)
class Service:
    """A simulated service with held-out users.

    Attributes:
        flips: Share of all questions whose answer changes between right and wrong in any training.
        accuracy: Share of all questions that stable answers correctly.
        likes: How often users report a right answer, relative to a wrong one.
        users: Held-out users with at least one judgement.
        control_flips: Flips of the control, relative to `flips`.
    """

    flips: float = 0.2
    accuracy: float = 0.5
    likes: float = 1 / 3
    users: int = 40
    control_flips: float = 1.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is true of a candidate.

    Attributes:
        fixes: Share of the facts in corrected questions that it answers correctly in all wordings.
        breaks: Whether it breaks as many right answers elsewhere, counted by questions asked.
        flips: Its flips, relative to those of the service.
    """

    fixes: float = 0.0
    breaks: bool = False
    flips: float = 1.0


@dataclass(frozen=True, slots=True)
class Outcomes:
    """The judged questions of one service with their outcomes.

    Attributes:
        users: (items,) user of each item.
        facts: (items,) fact of each item.
        against_stable: (candidates, items) 1, 0 or -1.
        against_control: (candidates, items)
        times: (items,) when the item was given, from 0 to 1.
        corrected: Number of items that are corrections; the others are likes.
    """

    users: Integers
    facts: Integers
    against_stable: Integers
    against_control: Integers
    times: Floats
    corrected: int


def draw(service: Service, candidates: Sequence[Candidate], count: int, seed: int) -> Iterator[Outcomes]:
    """Draw `count` services, each with one of each candidate and a control."""
    rng = np.random.default_rng(seed)
    for start in range(0, count, CHUNK):
        drawing = Drawing(service, rng, min(CHUNK, count - start))
        control = drawing.flipped(service.flips * service.control_flips)
        answers = [drawing.answers(candidate) for candidate in candidates]
        yield from drawing.outcomes(answers, [control] * len(answers))


class Drawing:
    """Some services at once. Arrays are (services, items), padded, unless their name says otherwise."""

    def __init__(self, service: Service, rng: np.random.Generator, count: int) -> None:
        """Draw what users ask, what stable answers, and which answers they judge."""
        self.service, self.rng, self.count = service, rng, count
        judged_share = CORRECTS * (1 - service.accuracy + service.accuracy * service.likes)
        self.pool = 2 * service.users  # so that enough of them have a judgement
        activity = rng.lognormal(-(ACTIVITY_SIGMA**2) / 2, ACTIVITY_SIGMA, self.pool)
        asks = np.maximum(1, rng.poisson(JUDGEMENTS / judged_share * activity))
        popularity = np.arange(1, FACTS + 1.0) ** -POPULARITY
        asked_by = np.repeat(np.arange(self.pool), asks)
        self.user = np.broadcast_to(asked_by, (count, len(asked_by)))
        self.fact = rng.choice(FACTS, self.user.shape, p=popularity / popularity.sum())
        self.right: Bools = self._latent(*LIKENESS_KNOWN) < ndtri(service.accuracy)
        other = rng.random(self.user.shape) < OTHER_ANSWER
        served_right = np.where(other, rng.random(self.user.shape) < service.accuracy, self.right)
        reported = rng.random(self.user.shape) < np.where(served_right, CORRECTS * service.likes, CORRECTS)
        self.asked = (self.fact, self.right)
        self._keep_items(self._of_first_users(reported), ~served_right)
        self.times = rng.random(self.user.shape)

    def _of_first_users(self, reported: Bools) -> Bools:
        """Return which reports are of the first users who have any."""
        counts = np.zeros((self.count, self.pool))
        np.add.at(counts, (np.arange(self.count)[:, None], self.user), reported)
        kept = (counts > 0) & (np.cumsum(counts > 0, axis=1) <= self.service.users)
        result: Bools = reported & np.take_along_axis(kept, self.user, 1)
        return result

    def _keep_items(self, is_item: Bools, corrected: Bools) -> None:
        """Reduce all arrays of questions to the judged ones."""
        first = np.argsort(~is_item, axis=1, kind="stable")[:, : int(is_item.sum(1).max())]
        self.is_item = np.take_along_axis(is_item, first, 1)
        self.user = np.take_along_axis(self.user, first, 1)
        self.fact = np.take_along_axis(self.fact, first, 1)
        self.right = np.take_along_axis(self.right, first, 1)
        self.corrected = np.take_along_axis(corrected, first, 1)

    def _latent(self, by_fact: float, by_user: float) -> Floats:
        """Return standard normal values that are correlated within a fact and within a user."""
        facts = np.take_along_axis(self.rng.standard_normal((self.count, FACTS)), self.fact, 1)
        users = np.take_along_axis(self.rng.standard_normal((self.count, self.pool)), self.user, 1)
        own = self.rng.standard_normal(self.user.shape)
        latent: Floats = (
            np.sqrt(by_fact) * facts + np.sqrt(by_user) * users + np.sqrt(1 - by_fact - by_user) * own
        )
        return latent

    def flipped(self, flips: float) -> Floats:
        """Return the quality of a version's answers that differ from stable's by chance only.

        It is 1 for a right answer, and -0.5, 0 or 0.5 for a wrong one. Stable's wrong answers have 0.
        """
        accuracy = self.service.accuracy
        lost = flips / 2 / accuracy if accuracy else 0.0
        won = flips / 2 / (1 - accuracy) if 0 < accuracy < 1 else 0.0
        changed = self._latent(*LIKENESS_FLIPS) < ndtri(np.where(self.right, lost, won))
        looks = self._latent(*LIKENESS_FLIPS)
        # Of the wrong answers, as many as flip look better or worse than the wrong answer of another version.
        wrong = 0.5 * np.sign(looks) * (np.abs(looks) > -ndtri(flips / 2))
        quality: Floats = np.where(self.right != changed, 1.0, wrong)
        return quality

    def answers(self, candidate: Candidate) -> Floats:
        """Return the quality of a candidate's answers."""
        quality = self.flipped(self.service.flips * candidate.flips)
        if not candidate.fixes:
            return quality
        facts, right = self.asked
        fixed_facts = self.rng.random((self.count, FACTS)) < candidate.fixes
        if candidate.breaks:
            # As many right answers, of other facts.
            fixed = (np.take_along_axis(fixed_facts, facts, 1) & ~right).mean(1, keepdims=True)
            share = np.minimum(1.0, fixed / np.maximum(right.mean(1, keepdims=True), 1e-9))
            broken_facts = self.rng.random((self.count, FACTS)) < share
            quality = np.where(np.take_along_axis(broken_facts, self.fact, 1) & self.right, 0.0, quality)
        result: Floats = np.where(np.take_along_axis(fixed_facts, self.fact, 1) & ~self.right, 1.0, quality)
        return result

    def outcomes(self, answers: Sequence[Floats], controls: Sequence[Floats]) -> Iterator[Outcomes]:
        """Return the outcomes of candidates, each against stable and against its control."""
        stable = np.where(self.right, 1.0, 0.0)
        against_stable = np.sign(np.stack([quality - stable for quality in answers]))
        against_control = np.sign(
            np.stack([quality - control for quality, control in zip(answers, controls, strict=True)])
        )
        for row in range(self.count):
            items = self.is_item[row]
            yield Outcomes(
                self.user[row, items],
                self.fact[row, items],
                against_stable[:, row, items].astype(np.int64),
                against_control[:, row, items].astype(np.int64),
                self.times[row, items],
                int(self.corrected[row, items].sum()),
            )
