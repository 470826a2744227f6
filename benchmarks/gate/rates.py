"""Rates at which simulated candidates pass the gate: one gate, thirty gates in a row, and power."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Final

import numpy as np

from benchmarks.gate.simulated_service import Candidate, Drawing, Floats, Integers, Outcomes, Service, draw
from services.trainer.core.recipe import Recipe
from services.trainer.gate.limits import gate_alpha, min_clusters
from services.trainer.gate.statistics import cluster_means, sign_flip_p

FLIPS: Final = (0.0, 0.05, 0.1, 0.2, 0.3)
ACCURACY: Final = (0.0, 0.5, 0.8)
LIKES: Final = (1.0, 1 / 3, 0.1)
CELLS: Final = tuple(
    Service(flips, accuracy, likes)
    for accuracy, likes, flips in product(ACCURACY, LIKES, FLIPS)
    if accuracy or likes == LIKES[0]
)
"""If stable knows nothing, nothing is liked, and `likes` changes nothing."""
NO_BETTER: Final = Candidate()
FIXES: Final = 0.3
CANDIDATES: Final = {
    "no_better": NO_BETTER,
    "fixes": Candidate(FIXES),
    "fixes_and_flips_nothing": Candidate(FIXES, flips=0.0),
    "fixes_and_breaks_as_many": Candidate(FIXES, breaks=True, flips=0.0),
}
"""`fixes` flips as the control does, besides what it fixes."""
GATES: Final = 30
FIRST_SHARE: Final = 0.25
"""Share of the final items that the first of thirty gates has."""
CONTROL_GROWTH: Final = 1.5
"""A control is used again until the data grew by half."""
MIN_ITEMS: Final = int(Recipe.model_fields["gate_items"].default)
LINES_AT_ONCE: Final = 100
Json = dict[str, Any]


def is_better(outcomes: Integers, users: Integers, facts: Integers, look: int = 1) -> bool:
    """Return whether the gate finds a candidate better on these items, as `verdict.decide` does.

    Bounds decide most cases faster than the exact test. Random signs reach one standard deviation with a probability
    of at least 3/64 (Dvorak and Klein 2022), and z of them with one of at most exp(-z^2 / 2) (Hoeffding 1963).
    """
    alpha = gate_alpha(look)
    if len(outcomes) < MIN_ITEMS:
        return False
    for labels in (users, facts):
        values = cluster_means(outcomes, labels)
        z = values.sum() / max(1e-9, np.sqrt((values**2).sum()))
        if len(values) < min_clusters(alpha) or z <= 1:
            return False
        if z**2 < -2 * np.log(alpha) and sign_flip_p(values) > alpha:
            return False
    return True


@dataclass(frozen=True, slots=True)
class Passes:
    """How often candidates of one kind passed: with the control, and against stable alone."""

    with_control: float
    without_control: float


def one_gate(service: Service, count: int, seed: int) -> tuple[dict[str, Passes], Json]:
    """Return how often each of `CANDIDATES` passes a line's first gate, and the mean numbers of items."""
    passed = np.zeros((len(CANDIDATES), 2))
    items = corrected = groups = 0
    for drawn in draw(service, list(CANDIDATES.values()), count, seed):
        items, corrected = items + len(drawn.users), corrected + drawn.corrected
        groups += len(np.unique(drawn.facts))
        for number in range(len(CANDIDATES)):
            if is_better(drawn.against_stable[number], drawn.users, drawn.facts):
                controlled = is_better(drawn.against_control[number], drawn.users, drawn.facts)
                passed[number] += (controlled, 1)
    rates = {
        name: Passes(round(with_ / count, 4), round(without / count, 4))
        for name, (with_, without) in zip(CANDIDATES, passed.tolist(), strict=True)
    }
    return rates, {
        "items": round(items / count, 1),
        "corrections": round(corrected / count, 1),
        "questions": round(groups / count, 1),
    }


def cell_of(service: Service, count: int, seed: int) -> Json:
    """Return the figures of one gate of a service, for the JSON."""
    rates, sizes = one_gate(service, count, seed)
    return {**asdict(service), **sizes, **{name: asdict(passes) for name, passes in rates.items()}}


def many_gates(service: Service, count: int, seed: int, gates: int = GATES) -> dict[str, float]:
    """Return how often a line that never gets better is promoted at least once in `gates` gates.

    Each gate has a new candidate. Its data grow from `FIRST_SHARE` of the items to all. The control is used again until
    the data grew by half. Nothing is promoted in between, so the level falls with each gate.
    """
    rng = np.random.default_rng(seed)
    ever = alone = 0
    for start in range(0, count, LINES_AT_ONCE):
        for with_control, without in _lines(service, rng, min(LINES_AT_ONCE, count - start), gates):
            ever, alone = ever + with_control, alone + without
    return {"with_control": round(ever / count, 4), "without_control": round(alone / count, 4)}


def _lines(service: Service, rng: np.random.Generator, count: int, gates: int) -> Iterator[tuple[bool, bool]]:
    drawing = Drawing(service, rng, count)
    shares = [FIRST_SHARE + (1 - FIRST_SHARE) * gate / max(1, gates - 1) for gate in range(gates)]
    answers, controls = [], []
    control: Floats = drawing.flipped(service.flips)
    trained_on = shares[0]
    for share in shares:
        if share >= CONTROL_GROWTH * trained_on:
            control, trained_on = drawing.flipped(service.flips), share
        answers.append(drawing.answers(NO_BETTER))
        controls.append(control)
    for drawn in drawing.outcomes(answers, controls):
        alone = any(_passes(drawn, drawn.against_stable, gate, share) for gate, share in enumerate(shares))
        both = alone and any(
            _passes(drawn, drawn.against_control, gate, share)
            and _passes(drawn, drawn.against_stable, gate, share)
            for gate, share in enumerate(shares)
        )
        yield both, alone


def _passes(drawn: Outcomes, outcomes: Integers, gate: int, share: float) -> bool:
    given = drawn.times <= share
    return is_better(outcomes[gate, given], drawn.users[given], drawn.facts[given], gate + 1)
