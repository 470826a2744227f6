"""What follows from the figures of a canary: roll it back, hold it, go on, promote it, pause it, or wait. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log
from typing import Final, Literal

from services.rollout.core import sequential_test as tests
from services.rollout.core.policy import RATIO_ALPHA, CanaryPolicy
from services.rollout.core.trial import FAILED_MARGIN, LATENCY_MARGIN, Trial
from shared.versions import CanaryArm

What = Literal["roll_back", "hold", "advance", "promote", "pause", "wait"]
MINUTE_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class Finding:
    """What to do with a canary.

    Attributes:
        what: The action.
        reason: Why, with figures.
        waits_for: If it waits or is paused: what is missing, one text each.

    """

    what: What
    reason: str = ""
    waits_for: tuple[str, ...] = ()


def judge(
    trial: Trial, policy: CanaryPolicy, now_ms: int, *, paused: bool, estimate: bool = False
) -> Finding:
    """Return what to do with the canary now. While promotions are paused, it can still be rolled back.

    With `estimate`, it also says about how many users are missing, which takes some milliseconds.
    """
    harm = _harm(trial, policy) or _guardrails(trial, policy)
    if harm is not None:
        return Finding("roll_back", harm)
    if trial.held:
        return Finding("wait", trial.held, (trial.held,))
    ratio = _sample_ratio(trial)
    if ratio is not None:
        return Finding("hold", ratio, (ratio,))
    missing = _missing(trial, policy, now_ms, estimate=estimate)
    if paused:
        return Finding(
            "wait", waits_for=("promotions are paused until `loopwright rollout resume`", *missing)
        )
    if not missing:
        is_last = policy.next_share(trial.share) is None
        return Finding("promote" if is_last else "advance", _why_on(trial, policy, is_last=is_last))
    if now_ms >= trial.deadline_from_ms + policy.deadline_ms:
        missing = _missing(trial, policy, now_ms, estimate=True)
        text = f"inconclusive after {_duration(policy.deadline_ms)}; missing: {'; '.join(missing)}"
        return Finding("pause", text, missing)
    return Finding("wait", waits_for=missing)


def _harm(trial: Trial, policy: CanaryPolicy) -> str | None:
    canary, stable = trial.canary_arm, trial.stable_arm
    level = log(1 / policy.harm_alpha)
    if tests.log_evidence(canary.votes, stable.votes, enough=level) < level:
        return None
    test = trial.test(policy)
    return (
        f"{trial.canary} is worse than {trial.stable}: {_satisfied(test.canary)}, against "
        f"{_satisfied(test.stable)}; p = {test.harm_p:.2g} at any look, the limit is {policy.harm_alpha:.2g}"
    )


def _guardrails(trial: Trial, policy: CanaryPolicy) -> str | None:
    canary, stable = trial.canary_arm, trial.stable_arm
    alpha = policy.guardrail_alpha(trial.period)
    level = log(1 / alpha)
    after = f"p < {alpha:.2g} at any look"
    if tests.log_evidence(stable.failed, canary.failed, -FAILED_MARGIN, enough=level) >= level:
        return (
            f"requests to {trial.canary} fail: those of {canary.failed[1]} of {sum(canary.failed)} sampled users, "
            f"against {stable.failed[1]} of {sum(stable.failed)} of {trial.stable}; {after}"
        )
    if tests.log_evidence(stable.latency, canary.latency, -LATENCY_MARGIN, enough=level) >= level:
        test = trial.test(policy)
        return (
            f"{trial.canary} is slow: a typical answer took {test.canary.latency_ms or 0:.0f} ms "
            f"({sum(canary.latency)} users), against {test.stable.latency_ms or 0:.0f} ms of {trial.stable}; {after}"
        )
    return None


def _sample_ratio(trial: Trial) -> str | None:
    canary, stable, part = trial.canary_arm.seen, trial.stable_arm.seen, trial.canary_part
    if tests.log_ratio_evidence(canary, stable, part) < log(1 / RATIO_ALPHA):
        return None
    return (
        f"sample ratio mismatch: {canary} of {canary + stable} users got the canary, expected {part:.1%}; the figures "
        "cannot be trusted. Find the replica of inference that does not serve it by its `/readyz`; then "
        "`loopwright rollout resume` begins the step again"
    )


def _missing(trial: Trial, policy: CanaryPolicy, now_ms: int, *, estimate: bool) -> tuple[str, ...]:
    """Return what is missing for the next step."""
    canary, stable = trial.canary_arm, trial.stable_arm
    missing = []
    dwell_ms = trial.began_ms + policy.dwell_ms - now_ms
    if dwell_ms > 0:
        missing.append(f"{_duration(dwell_ms)} more in this step")
    for users, name in ((canary.users, "the canary"), (stable.users, "the stable version")):
        if users < policy.min_users:
            missing.append(f"{policy.min_users - users} more users with feedback on {name}")
    if policy.next_share(trial.share) is None:
        level = log(1 / policy.alpha)
        if tests.log_evidence(stable.votes, canary.votes, policy.margin, enough=level) < level:
            estimated = _more_users(trial, policy) if estimate else None
            more = "" if estimated is None else f": about {estimated} more users with feedback on it"
            missing.append(f"evidence that it is not worse by {policy.margin:.0%} points or more{more}")
    return tuple(missing)


def _more_users(trial: Trial, policy: CanaryPolicy) -> int | None:
    """Return about how many more users of the canary the promotion needs, if the present means are the true ones."""
    users = trial.canary_arm.users
    evidence = tests.log_evidence(trial.stable_arm.votes, trial.canary_arm.votes, policy.margin)
    if users < policy.min_users or evidence <= 0.5:
        return None
    return max(1, ceil(users * (log(1 / policy.alpha) / evidence - 1)))


def _why_on(trial: Trial, policy: CanaryPolicy, *, is_last: bool) -> str:
    test = trial.test(policy)
    figures = f"{_satisfied(test.canary)}, against {_satisfied(test.stable)} of {trial.stable}"
    if not is_last:
        return f"nothing speaks against {trial.canary} at {trial.share:.0%}: {figures}"
    return (
        f"{trial.canary} is not worse than {trial.stable} by {policy.margin:.0%} points or more: {figures}; "
        f"p = {test.promotion_p:.2g} at any look, the limit is {policy.alpha:.2g}"
    )


def _satisfied(arm: CanaryArm) -> str:
    if arm.mean is None:
        return "no user with feedback"
    return f"satisfaction {arm.mean:.0%} ({arm.low:.0%} to {arm.high:.0%}) of {arm.users} users"


def _duration(ms: int) -> str:
    minutes = max(1, ceil(ms / MINUTE_MS))
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes / 60:.0f} h" if minutes < 2 * 1440 else f"{minutes / 1440:.0f} days"
