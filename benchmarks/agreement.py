"""`python -m benchmarks.agreement`: does agreement keep honest corrections and drop false ones? Prints one JSON line.

Honest users of the demo world answer each of its 24 facts once, in random wordings. Six users push false answers to
three facts, in several wordings each. Every number is a total or a mean over `SEEDS` draws. The line is kept in
benchmarks/agreement.json; with 160 users it also has the CPU time and the memory of one large case.
"""

from __future__ import annotations

import json
import random
import resource
import statistics
import time
from collections import Counter, defaultdict
from pathlib import Path

from benchmarks.machine import machine
from examples.world import Fact, load_world
from services.trainer.dataset.agreement import Agreement, corrections_of, find_agreement

RESULTS = Path(__file__).with_suffix(".json")
SEEDS = 30
USERS = (6, 10, 16)
MANY_USERS = 160
POISONERS = ((2, 4), (1, 4), (3, 3))
"""(users, wordings each) per poisoned fact."""
WORLD = load_world()
Given = tuple[str, str, str]
"""(user, question, answer)"""


def honest(users: int, seed: int) -> list[Given]:
    """Return one correction of each fact by each user."""
    dice = random.Random(seed)
    return [
        (f"honest-{user}", dice.choice(WORLD.trained_wordings(fact)), dice.choice(fact.answers))
        for user in range(users)
        for fact in WORLD.facts
    ]


def poison(fact: Fact, users: int, wordings: int, seed: int) -> list[Given]:
    """Return the same false answer to several wordings by each user."""
    dice = random.Random(seed)
    return [
        (f"poison-{fact.id}-{user}", wording, fact.false_answer)
        for user in range(users)
        for wording in dice.sample(WORLD.trained_wordings(fact), wordings)
    ]


def draw(users: int, seed: int) -> list[Given]:
    """Return honest and false corrections."""
    poisoned = random.Random(seed).sample(WORLD.facts, len(POISONERS))
    false = [
        given
        for fact, (poisoners, wordings) in zip(poisoned, POISONERS, strict=True)
        for given in poison(fact, poisoners, wordings, seed)
    ]
    return honest(users, 100 + seed) + false


def impurity(given: list[Given], agreement: Agreement) -> float:
    """Return the share of corrections that are in a group of another fact."""
    fact_of = {wording: fact.id for fact in WORLD.facts for wording in fact.wordings}
    groups: dict[int, Counter[str]] = defaultdict(Counter)
    for (_, question, _), group in zip(given, agreement.group, strict=True):
        groups[group][fact_of[question]] += 1
    return sum(counts.total() - max(counts.values()) for counts in groups.values()) / len(given)


def measure(users: int) -> dict[str, float]:
    """Return the results for a number of honest users."""
    kept, impure = [], []
    false_trained = false_total = 0
    for seed in range(SEEDS):
        given = draw(users, seed)
        agreement = find_agreement(corrections_of(given))
        trains = [opponent is None for opponent in agreement.opponent]
        is_honest = [user.startswith("honest") for user, _, _ in given]
        kept.append(statistics.fmean(train for train, ok in zip(trains, is_honest, strict=True) if ok))
        false_trained += sum(train for train, ok in zip(trains, is_honest, strict=True) if not ok)
        false_total += is_honest.count(False)
        impure.append(impurity(given, agreement))
    return {
        "honest_kept": round(statistics.fmean(kept), 4),
        "honest_kept_worst": round(min(kept), 4),
        "false_trained": false_trained,
        "false_total": false_total,
        "impure_groups": round(statistics.fmean(impure), 4),
    }


def measure_cost(users: int) -> dict[str, float]:
    """Return CPU time and memory of one large case."""
    given = honest(users, 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    find_agreement(corrections_of(given))
    return {
        "corrections": len(given),
        "cpu_seconds": round(time.process_time() - start, 1),
        "added_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024,
    }


def main() -> None:
    """Measure, print a table and the JSON line, and write it to benchmarks/agreement.json."""
    quality = {str(users): measure(users) for users in USERS}
    for users, found in quality.items():
        print(f"{users:>4} honest users: {found}")
    result = {
        "bench": "agreement",
        "seeds": SEEDS,
        "users": quality,
        "cost": measure_cost(MANY_USERS),
        "machine": machine(),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
