"""One canary while it is tried: what its users and those of the stable version said and saw. Pure.

Each step of a canary is an experiment of its own, with tests of its own. In a step, a user counts once in each test:

- satisfaction: the user's first feedback on a response that was given in this step. Later votes change nothing;
- sample ratio: the version of the user's first response;
- guardrails: whether the user's first response in each period failed, and how long it took. A period ends after an
  hour, but not before it has enough users; the next one starts new tests.

Only users who got the version that they are assigned to count for satisfaction and guardrails, and nobody whom an
earlier step gave the canary already: those users were selected by what they said there.
"""

from __future__ import annotations

from math import exp, log, log2
from typing import Final, NamedTuple

from pydantic import Field

from services.rollout.core import sequential_test as tests
from services.rollout.core.policy import CanaryPolicy
from services.rollout.core.sequential_test import Histogram
from shared.canary_assignment import user_point
from shared.events import Part, ResponseSample, Tally, from_ms, to_ms
from shared.versions import MAX_CANARY_POINTS, CanaryArm, CanaryPoint, CanaryTest, RolloutRecord

VOTE_STEPS: Final = 4
"""Satisfaction is counted in quarters, as ratings from 1 to 5 state it."""
LATENCY_STEPS: Final = 24
"""Latency is counted on a log scale from 16 ms to 65 s, in steps of a factor of 1.41."""
LATENCY_FIRST_MS: Final = 16.0
FAILED_MARGIN: Final = 0.01
"""How many more requests, as a share, may fail."""
LATENCY_MARGIN: Final = 1 / LATENCY_STEPS
"""How much slower the typical request may be: by a factor of 1.41."""
PERIOD_MS: Final = 3_600_000
PERIOD_USERS: Final = 50
"""Users of the canary without which no period of the guardrails ends."""
MAX_USERS: Final = 200_000
"""Users who are counted in one step at most: the bound of the state."""
DISPLAY_ALPHA: Final = 0.05


class Arm(Part):
    """What is counted of one version's users in the present step."""

    seen: int = 0
    votes: Histogram = Field(default_factory=lambda: tests.empty(VOTE_STEPS))
    failed: Histogram = Field(default_factory=lambda: tests.empty(1))
    latency: Histogram = Field(default_factory=lambda: tests.empty(LATENCY_STEPS))

    @property
    def users(self) -> int:
        """Users with feedback."""
        return sum(self.votes)


class UserMark(NamedTuple):
    """What is known of one user in one step: a few bytes."""

    seen: bool = False
    voted: bool = False
    period: int = -1
    """The period in which the user's newest sample was counted."""


class Trial(Part):
    """State of the canary that is tried."""

    line: str
    canary: str
    stable: str
    share: float
    earlier_share: float = Field(0.0, description="Users below this point had the canary in an earlier step.")
    run: int = Field(description="seq of the record with which the step, and with it all counts, began.")
    began_ms: int
    deadline_from_ms: int = Field(description="When the canary, or its last `resume`, began.")
    canary_arm: Arm = Arm()
    stable_arm: Arm = Arm()
    period: int = 0
    period_ms: int
    marks: int = Field(0, description="Users of whom something is stored.")
    held: str = Field("", description="Why the sample ratio is wrong.")
    checked_ms: int = 0
    published_ms: int = 0

    @classmethod
    def begin(cls, record: RolloutRecord, now_ms: int, before: Trial | None = None) -> Trial:
        """Return the trial of the step that `record` begins; `before` is the step before it, if it is known."""
        assert record.canary is not None
        same = before is not None and before.canary == record.canary.version
        known = before if same else None
        return cls(
            line=record.line,
            canary=record.canary.version,
            stable=record.stable.version,
            share=record.share,
            earlier_share=_earlier_share(known, record.share),
            run=record.seq,
            began_ms=now_ms,
            deadline_from_ms=now_ms if known is None else known.deadline_from_ms,
            period=0 if known is None else known.period + 1,
            period_ms=now_ms,
        )

    def arm_of(self, version: str) -> str | None:
        """Return the field of a version's arm, or None if it takes no part."""
        return {self.canary: "canary_arm", self.stable: "stable_arm"}.get(version)

    def count_vote(self, tally: Tally, mark: UserMark, policy: CanaryPolicy) -> tuple[Trial, UserMark] | None:
        """Count a user's vote, or return None if it does not count."""
        arm = self.arm_of(tally.version)
        if arm is None or mark.voted or tally.vote is None or tally.vote_on is None:
            return None
        if not self._counts(tally.user_id, tally.version) or self._is_early(to_ms(tally.vote_on), policy):
            return None
        counted: Arm = getattr(self, arm)
        counted = counted.model_copy(update={"votes": tests.add(counted.votes, tally.vote)})
        return self.model_copy(update={arm: counted}), mark._replace(voted=True)

    def count_sample(
        self, sample: ResponseSample, mark: UserMark, policy: CanaryPolicy
    ) -> tuple[Trial, UserMark] | None:
        """Count a user's response for the sample ratio and the guardrails, or return None if it does not count."""
        arm = self.arm_of(sample.version)
        if arm is None or self._is_early(to_ms(sample.responded_at), policy):
            return None
        if user_point(sample.user_id, self.line, self.canary) < self.earlier_share:
            return None
        trial = self._in_period(to_ms(sample.responded_at))
        counted: Arm = getattr(trial, arm)
        update: dict[str, object] = {} if mark.seen else {"seen": counted.seen + 1}
        if mark.period < trial.period and self._counts(sample.user_id, sample.version):
            update["failed"] = tests.add(counted.failed, float(sample.failed))
            if not sample.failed and sample.latency_ms is not None:
                update["latency"] = tests.add(counted.latency, _latency_score(sample.latency_ms))
            mark = mark._replace(period=trial.period)
        elif not update:
            return None
        return trial.model_copy(update={arm: counted.model_copy(update=update)}), mark._replace(seen=True)

    def _counts(self, user: str, version: str) -> bool:
        """Return whether the user is assigned to this version, and did not have the canary in an earlier step."""
        point = user_point(user, self.line, self.canary)
        if point < self.earlier_share:
            return False
        return (version == self.canary) == (point < self.share)

    def _is_early(self, at_ms: int, policy: CanaryPolicy) -> bool:
        return at_ms < self.began_ms + policy.settle_ms

    def _in_period(self, now_ms: int) -> Trial:
        """Return the trial in the period of the guardrails that has `now_ms`."""
        users = min(sum(self.canary_arm.failed), sum(self.stable_arm.failed))
        if now_ms < self.period_ms + PERIOD_MS or users < PERIOD_USERS:
            return self
        fresh: dict[str, object] = {"failed": tests.empty(1), "latency": tests.empty(LATENCY_STEPS)}
        return self.model_copy(
            update={
                "period": self.period + 1,
                "period_ms": now_ms,
                "canary_arm": self.canary_arm.model_copy(update=fresh),
                "stable_arm": self.stable_arm.model_copy(update=fresh),
            }
        )

    @property
    def canary_part(self) -> float:
        """Expected share of the canary among the users who count in this step."""
        return (self.share - self.earlier_share) / (1 - self.earlier_share)

    # --- figures ---

    def test(self, policy: CanaryPolicy, waits_for: tuple[str, ...] = ()) -> CanaryTest:
        """Return the figures of the present step."""
        canary, stable = self.canary_arm, self.stable_arm
        return CanaryTest(
            share=self.share,
            step_began_at=from_ms(self.began_ms),
            deadline_at=from_ms(self.deadline_from_ms + policy.deadline_ms),
            canary=_figures(self.canary, canary),
            stable=_figures(self.stable, stable),
            harm_p=_p_value(tests.log_evidence(canary.votes, stable.votes)),
            harm_alpha=policy.harm_alpha,
            promotion_p=_p_value(tests.log_evidence(stable.votes, canary.votes, policy.margin)),
            promotion_alpha=policy.alpha,
            margin=policy.margin,
            waits_for=waits_for,
        )


def add_point(points: tuple[CanaryPoint, ...], test: CanaryTest, now_ms: int) -> tuple[CanaryPoint, ...]:
    """Return the points with one more. If there are too many, every second one of the older half is left out."""
    points = (*points, _point(test, now_ms))
    if len(points) <= MAX_CANARY_POINTS:
        return points
    half = MAX_CANARY_POINTS // 2
    return (*points[:half:2], *points[half:])


def _earlier_share(before: Trial | None, share: float) -> float:
    """Return the share up to which users had the canary before a step with `share`; a step may begin again."""
    if before is None:
        return 0.0
    return before.share if before.share < share else before.earlier_share


def _latency_score(latency_ms: float) -> float:
    steps_per_doubling = 2
    return log2(max(latency_ms, LATENCY_FIRST_MS) / LATENCY_FIRST_MS) * steps_per_doubling / LATENCY_STEPS


def _p_value(log_evidence: float) -> float:
    return exp(-max(0.0, log_evidence))


def _figures(version: str, arm: Arm) -> CanaryArm:
    low, high = tests.interval(arm.votes, DISPLAY_ALPHA)
    latency = tests.mean(arm.latency)
    return CanaryArm(
        version=version,
        seen=arm.seen,
        users=arm.users,
        mean=tests.mean(arm.votes),
        low=low,
        high=high,
        failed=tests.mean(arm.failed),
        latency_ms=None
        if latency is None
        else round(LATENCY_FIRST_MS * exp(latency * LATENCY_STEPS / 2 * log(2)), 1),
    )


def _point(test: CanaryTest, now_ms: int) -> CanaryPoint:
    return CanaryPoint(
        at=from_ms(now_ms),
        share=test.share,
        canary_users=test.canary.users,
        canary_low=test.canary.low,
        canary_mean=test.canary.mean,
        canary_high=test.canary.high,
        stable_users=test.stable.users,
        stable_low=test.stable.low,
        stable_mean=test.stable.mean,
        stable_high=test.stable.high,
    )
