"""How a passed version takes over: at once, or as a canary in steps. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

PolicyName = Literal["direct", "canary"]

HARM_PART: Final = 0.8
"""Part of `alpha` for the test of harm; the guardrails divide the rest equally."""
GUARDRAILS: Final = 2
"""Failed requests, and latency."""
RATIO_ALPHA: Final = 0.001
"""Level of the test of the sample ratio. It only holds the canary."""


@dataclass(frozen=True, slots=True)
class CanaryPolicy:
    """Settings of the rollout, in its own units. All durations are append time, in ms.

    Attributes:
        name: With `direct`, a passed version takes over at once.
        shares: Share of the users in each step of a canary.
        dwell_ms: Shortest time in a step.
        settle_ms: Time at the beginning of a step that does not count, because replicas still load the version.
        feedback_users: A version whose training data has feedback of fewer users takes over at once.
        min_users: Fewest users of the canary with feedback in a step.
        margin: Largest loss of satisfaction, from 0 to 1, with which a canary still takes over.
        alpha: Probability that a canary that is as good as the stable version is rolled back; and, separately, that one
            that is worse by more than the margin takes over.
        deadline_ms: Time after which an inconclusive canary is paused.
        cooldown_ms: Time after a rollback of a canary in which no other one starts.

    """

    name: PolicyName = "direct"
    shares: tuple[float, ...] = (0.05, 0.25)
    dwell_ms: int = 3_600_000
    settle_ms: int = 300_000
    feedback_users: int = 1_000
    min_users: int = 30
    margin: float = 0.05
    alpha: float = 0.05
    deadline_ms: int = 14 * 86_400_000
    cooldown_ms: int = 86_400_000

    def tries(self, users: int) -> bool:
        """Return whether a version with feedback of `users` users in its training data is tried as canary."""
        return self.name == "canary" and users >= self.feedback_users

    @property
    def harm_alpha(self) -> float:
        """Level of the test of harm in one step. Over all steps, the errors add up to `alpha * HARM_PART`."""
        return self.alpha * HARM_PART / len(self.shares)

    def guardrail_alpha(self, period: int) -> float:
        """Level of one guardrail in one period, counted from 0. Over all periods and guardrails they add up."""
        return self.alpha * (1 - HARM_PART) / GUARDRAILS / ((period + 1) * (period + 2))

    def next_share(self, share: float) -> float | None:
        """Return the share of the step after the one with `share`, or None if that is the last step."""
        return next((each for each in self.shares if each > share), None)
