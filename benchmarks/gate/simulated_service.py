"""A simulated service: users ask, judge some answers, and a candidate and a control answer the judged questions again.

Vectorised over services that differ by chance only. What stable knows, which facts a candidate fixes, and what flips by
chance are correlated within a fact and within a user, some facts are popular, and some users are active. So items are
as dependent as in production, in two directions at once.

A candidate's answer to a question is right or wrong. A wrong answer can also look a little better or worse than
another wrong one, by chance. Flips happen in both directions equally often over all questions asked, so a candidate
that learned nothing is right as often as stable. On the judged questions this does not hold: users correct what stable
got wrong more often than they like what it got right.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    """

    flips: float = 0.2
    accuracy: float = 0.5
    likes: float = 1 / 3
    users: int = 40


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
class Judged:
    """The judged questions of one service, with how well three versions answer them.

    Attributes:
        users: (items,) user of each item.
        facts: (items,) fact of each item.
        corrected: (items,) whether the user corrected the served answer, else liked it.
        stable: (items,) quality of the answers: 1 if right, between -0.5 and 0.5 if wrong.
        candidate: (items,)
        control: (items,)
    """

    users: Integers
    facts: Integers
    corrected: Bools
    stable: Floats
    candidate: Floats
    control: Floats

    def against_stable(self) -> Integers:
        """Return the outcomes of the candidate against stable."""
        return np.sign(self.candidate - self.stable).astype(np.int64)

    def against_control(self) -> Integers:
        """Return the outcomes of the candidate against the control."""
        return np.sign(self.candidate - self.control).astype(np.int64)


def draw(service: Service, candidate: Candidate, count: int, seed: int) -> Iterator[Judged]:
    """Draw `count` services with a candidate and a control each."""
    rng = np.random.default_rng(seed)
    for start in range(0, count, CHUNK):
        yield from _Drawing(service, rng, min(CHUNK, count - start)).judged(candidate)


class _Drawing:
    """Some services at once. Arrays are (services, questions) unless their name says otherwise."""

    def __init__(self, service: Service, rng: np.random.Generator, count: int) -> None:
        self.service, self.rng = service, rng
        judged_share = CORRECTS * (1 - service.accuracy + service.accuracy * service.likes)
        self.pool = 2 * service.users  # so that enough of them have a judgement
        activity = rng.lognormal(-(ACTIVITY_SIGMA**2) / 2, ACTIVITY_SIGMA, self.pool)
        asks = np.maximum(1, rng.poisson(JUDGEMENTS / judged_share * activity))
        self.user = np.repeat(np.arange(self.pool), asks)
        popularity = np.arange(1, FACTS + 1.0) ** -POPULARITY
        self.shape = (count, len(self.user))
        self.fact = rng.choice(FACTS, self.shape, p=popularity / popularity.sum())
        self.right = self._latent(*LIKENESS_KNOWN) < ndtri(service.accuracy)
        other = rng.random(self.shape) < OTHER_ANSWER
        self.served_right = np.where(other, rng.random(self.shape) < service.accuracy, self.right)
        reported = np.where(self.served_right, CORRECTS * service.likes, CORRECTS)
        self.is_item = self._of_first_users(rng.random(self.shape) < reported)

    def _latent(self, by_fact: float, by_user: float) -> Floats:
        """Return standard normal values that are correlated within a fact and within a user."""
        count, _ = self.shape
        facts = np.take_along_axis(self.rng.standard_normal((count, FACTS)), self.fact, 1)
        users = self.rng.standard_normal((count, self.pool))[:, self.user]
        own = self.rng.standard_normal(self.shape)
        latent: Floats = (
            np.sqrt(by_fact) * facts + np.sqrt(by_user) * users + np.sqrt(1 - by_fact - by_user) * own
        )
        return latent

    def _of_first_users(self, reported: Bools) -> Bools:
        """Return which reports are of the first users who have any."""
        counts = np.zeros((self.shape[0], self.pool))
        np.add.at(counts, (np.arange(self.shape[0])[:, None], self.user[None, :]), reported)
        kept = (np.cumsum(counts > 0, axis=1) <= self.service.users)[:, self.user]
        result: Bools = reported & kept
        return result

    def _flipped(self, flips: float) -> Floats:
        """Return the quality of a version that differs from stable by chance only."""
        accuracy = self.service.accuracy
        lost = flips / 2 / accuracy if accuracy else 0.0
        won = flips / 2 / (1 - accuracy) if 0 < accuracy < 1 else 0.0
        changed = self._latent(*LIKENESS_FLIPS) < ndtri(np.where(self.right, lost, won))
        looks = self._latent(*LIKENESS_FLIPS)
        # Of the wrong answers, as many as flip look better or worse than the wrong answer of another version.
        wrong = 0.5 * np.sign(looks) * (np.abs(looks) > -ndtri(flips / 2))
        quality: Floats = np.where(self.right != changed, 1.0, wrong)
        return quality

    def _with_fixes(self, quality: Floats, candidate: Candidate) -> Floats:
        count, _ = self.shape
        fixed_facts = self.rng.random((count, FACTS)) < candidate.fixes
        fixed = np.take_along_axis(fixed_facts, self.fact, 1) & ~self.right
        if candidate.breaks:
            # As many right answers, of other facts.
            share = fixed.mean(1, keepdims=True) / np.maximum(self.right.mean(1, keepdims=True), 1e-9)
            broken_facts = self.rng.random((count, FACTS)) < np.minimum(1.0, share)
            broken = np.take_along_axis(broken_facts, self.fact, 1) & self.right
            quality = np.where(broken, 0.0, quality)
        result: Floats = np.where(fixed, 1.0, quality)
        return result

    def judged(self, candidate: Candidate) -> Iterator[Judged]:
        """Return the judged questions of each service."""
        flips = self.service.flips
        answers = self._with_fixes(self._flipped(flips * candidate.flips), candidate)
        control = self._flipped(flips)
        stable = np.where(self.right, 1.0, 0.0)
        for row in range(self.shape[0]):
            items = self.is_item[row]
            yield Judged(
                self.user[items],
                self.fact[row, items],
                ~self.served_right[row, items],
                stable[row, items],
                answers[row, items],
                control[row, items],
            )
