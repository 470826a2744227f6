"""False rollbacks, detected harm and power of the canary, by simulation: `make bench-rollout`.

The rules are those of the rollout (`Trial` and `judge`), looked at after every vote on the canary. Simulated users
differ
in how easily they are satisfied, so the votes of one user are correlated, and each votes several times. Writes
`benchmarks/rollout.json`, which README and `docs/decisions/canary.md` quote. Seeded: the same code gives the same
figures.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import log
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final

import typer

from benchmarks.machine import machine
from services.rollout.core import sequential_test as tests
from services.rollout.core.finding import judge
from services.rollout.core.policy import CanaryPolicy
from services.rollout.core.trial import VOTE_STEPS, Arm, Trial

RESULTS: Final = Path(__file__).with_name("rollout.json")
POLICY: Final = CanaryPolicy(name="canary", settle_ms=0)
REQUESTS: Final = 10
"""Requests of each user during the longest canary, on average."""
VOTERS: Final = 0.3
"""Share of the users who ever vote, and of their requests that they vote on."""
SAME_MOOD: Final = 3**-0.5
"""Probability that a vote shows the user's mood, and not chance: two votes of a user have a correlation of 1/3."""
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class World:
    """What is simulated.

    Attributes:
        name: Its name in the results.
        users: Users who make requests during the canary.
        stable: Mean satisfaction with the stable version.
        harm: How much lower it is with the canary; negative if the canary is better.
        drift: By how much both change from the beginning to the deadline.
        canaries: How many of the simulated canaries have it.

    """

    name: str
    users: int = 20_000
    stable: float = 0.7
    harm: float = 0.0
    drift: float = 0.0
    canaries: int = 2_000


WORLDS: Final = (
    World("null"),
    World("null, 95 % satisfied", stable=0.95, canaries=150),
    World("null, everybody's satisfaction falls by 20 points", drift=-0.2, canaries=150),
    World("10 points worse", harm=0.1, canaries=300),
    World("20 points worse", harm=0.2, canaries=300),
    World("10 points worse, 5,000 users", users=5_000, harm=0.1, canaries=150),
    World("as good", canaries=150),
    World("5 points better", harm=-0.05, canaries=150),
    World("as good, 80,000 users", users=80_000, canaries=30),
    World("worse by the margin", users=40_000, harm=0.05, canaries=150),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one canary ended. The numbers are up to then.

    Attributes:
        what: `roll_back`, `promote` or `pause`.
        canary_users: Users of the canary with feedback, in all steps.
        votes: Votes on both versions.
        exposed: Share of all users who had a response of the canary.
        hours: Time since the canary began.

    """

    what: str
    canary_users: int
    votes: int
    exposed: float
    hours: float


def try_canary(world: World, policy: CanaryPolicy, seed: int) -> Outcome:
    """Simulate one canary from its start to its end."""
    source = random.Random(seed)
    deadline = policy.deadline_ms
    trial = Trial(
        line="l", canary="l@v2-00000002", stable="l@v1-00000001", share=policy.shares[0], run=1,
        began_ms=0, deadline_from_ms=0, period_ms=0,
    )  # fmt: skip
    votes = _votes(world, source, deadline)
    point = [source.random() for _ in range(world.users)]
    counted: set[int] = set()
    arms = {True: list(tests.empty(VOTE_STEPS)), False: list(tests.empty(VOTE_STEPS))}
    steps, earlier_users = [(0.0, 0, trial.share)], 0
    for number, (at_ms, user, easy) in enumerate(votes):
        if user in counted or point[user] < trial.earlier_share:
            continue
        counted.add(user)
        canary = point[user] < trial.share
        mean = world.stable + world.drift * at_ms / deadline - world.harm * canary
        arms[canary][VOTE_STEPS if easy < mean else 0] += 1
        if not canary:
            continue
        trial = trial.model_copy(
            update={
                "canary_arm": Arm.model_construct(**_arm(arms[True])),
                "stable_arm": Arm.model_construct(**_arm(arms[False])),
            }
        )
        finding = judge(trial, policy, at_ms, paused=False)
        if finding.what in ("roll_back", "promote"):
            users = earlier_users + sum(arms[True])
            return Outcome(
                finding.what, users, number + 1, _exposed(steps, at_ms, deadline), at_ms / 3_600_000
            )
        if finding.what == "advance":
            share = policy.next_share(trial.share) or trial.share
            earlier_users += sum(arms[True])
            trial = trial.model_copy(
                update={
                    "share": share, "earlier_share": trial.share, "began_ms": at_ms,
                    "canary_arm": Arm(), "stable_arm": Arm(),
                }
            )  # fmt: skip
            steps.append((trial.earlier_share, at_ms, share))
            counted.clear()
            arms = {True: list(tests.empty(VOTE_STEPS)), False: list(tests.empty(VOTE_STEPS))}
    users = earlier_users + sum(arms[True])
    return Outcome("pause", users, len(votes), _exposed(steps, deadline, deadline), deadline / 3_600_000)


def _arm(votes: Sequence[int]) -> Json:
    fresh = Arm()
    return {"seen": 0, "votes": tuple(votes), "failed": fresh.failed, "latency": fresh.latency}


def _votes(world: World, source: random.Random, until_ms: int) -> list[tuple[int, int, float]]:
    """Return (time, user, how easily this vote is satisfied) by time: satisfied if the last is below the mean.

    Of a user with a low quantile of mood, all votes are easily satisfied. Drawn so that at every mean the votes of
    one user are exchangeable and correlated, and each is satisfied with a probability of that mean.
    """
    votes = []
    rate = REQUESTS * VOTERS
    for user in range(int(world.users * VOTERS)):
        mood, at = source.random(), 0.0
        while (at := at + source.expovariate(rate)) < 1.0:
            easy = mood if source.random() < SAME_MOOD else source.random()
            votes.append((int(at * until_ms), user, easy))
    votes.sort()
    return votes


def _exposed(steps: Sequence[tuple[float, int, float]], until_ms: int, deadline_ms: int) -> float:
    """Return the expected share of users with a response of the canary: requests of a user come at random times."""
    exposed = 0.0
    for earlier, began_ms, share in steps:
        active = 1 - (1 - (until_ms - began_ms) / deadline_ms) ** REQUESTS
        exposed += (share - earlier) * active
    return exposed


def naive_alarms(world: World, alpha: float, canaries: int) -> float:
    """Return how often the same test gives a false alarm if every vote counts, instead of every user once."""
    level, alarms = log(1 / alpha), 0
    for seed in range(canaries):
        source = random.Random(seed)
        point = [source.random() for _ in range(world.users)]
        arms = {True: list(tests.empty(1)), False: list(tests.empty(1))}
        for _, user, easy in _votes(world, source, 1_000_000):
            canary = point[user] < POLICY.shares[0]
            arms[canary][easy < world.stable] += 1
            evidence = canary and tests.log_evidence(tuple(arms[True]), tuple(arms[False]), enough=level)
            if evidence and evidence >= level:
                alarms += 1
                break
    return alarms / canaries


def summary(world: World, outcomes: Sequence[Outcome]) -> Json:
    """Return the figures of one world."""
    ended = {what: [o for o in outcomes if o.what == what] for what in ("roll_back", "promote", "pause")}
    early = sum(o.exposed < 0.25 for o in ended["roll_back"])
    decided = ended["roll_back"] if world.harm > 0 else ended["promote"]

    def middle(value: Callable[[Outcome], float]) -> float | None:
        return round(median(map(value, decided)), 3) if decided else None

    count = len(outcomes)
    return {
        "world": world.name,
        "users": world.users,
        "canaries": count,
        "rolled_back": len(ended["roll_back"]) / count,
        "rolled_back_before_a_quarter_saw_it": early / count,
        "promoted": len(ended["promote"]) / count,
        "paused": len(ended["pause"]) / count,
        "median_canary_users_with_feedback": middle(lambda o: o.canary_users),
        "median_votes": middle(lambda o: o.votes),
        "median_share_of_users_who_saw_it": middle(lambda o: o.exposed),
        "median_hours": middle(lambda o: o.hours),
    }


def measure(worlds: Sequence[World], naive: int) -> Json:
    """Return all figures. `naive` is the number of canaries for the comparison with counting every vote."""
    rows = [
        summary(world, [try_canary(world, POLICY, seed) for seed in range(world.canaries)])
        for world in worlds
    ]
    return {
        "alpha": POLICY.alpha,
        "margin": POLICY.margin,
        "worlds": rows,
        "false_alarms_if_every_vote_counts": naive_alarms(worlds[0], POLICY.harm_alpha, naive),
        "its_alpha": POLICY.harm_alpha,
    }


def main(
    quick: Annotated[bool, typer.Option(help="A fiftieth of the canaries; writes nothing.")] = False,
) -> None:
    """Simulate canaries, print a table and write the results."""
    began = time.monotonic()
    divide = 50 if quick else 1
    worlds = [replace(world, canaries=max(4, world.canaries // divide)) for world in WORLDS]
    results = measure(worlds, 200 // divide) | {
        "seconds": round(time.monotonic() - began),
        "machine": machine(),
    }
    for row in results["worlds"]:
        print(
            f"{row['world']:<50} {row['users']:>6} users, {row['canaries']:>4} canaries: rolled back "
            f"{row['rolled_back']:6.1%}, promoted {row['promoted']:6.1%}, paused {row['paused']:6.1%}; median "
            f"{row['median_canary_users_with_feedback']} canary users, {row['median_hours']} h"
        )
    text = json.dumps(results)
    print(text)
    if not quick:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
