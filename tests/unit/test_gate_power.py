"""What a gate of a given size can show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.gate.rates import NO_BETTER, is_better
from benchmarks.gate.simulated_service import Candidate, Service, draw
from services.trainer.gate.limits import gate_alpha
from services.trainer.gate.power import GateSize, describe, smallest_share

MIDDLE = GateSize(users=40, groups=150, items=500, improvable=350)


def test_more_feedback_shows_smaller_improvements() -> None:
    shares = [
        smallest_share(GateSize(n, 4 * n, 12 * n, 8 * n), gate_alpha(1)) or 1.0 for n in (10, 20, 40, 80, 160)
    ]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.3 < shares[0]


def test_later_gates_show_less() -> None:
    first, tenth = (smallest_share(MIDDLE, gate_alpha(look)) for look in (1, 10))
    assert first is not None
    assert tenth is not None
    assert first < tenth


def test_likes_show_no_improvement() -> None:
    assert smallest_share(replace(MIDDLE, improvable=0), 0.025) is None
    few, many = (smallest_share(replace(MIDDLE, improvable=n), 0.025) for n in (200, 400))
    assert few is not None
    assert many is not None
    assert many < few


@pytest.mark.parametrize("size", [GateSize(7, 50, 200, 200), GateSize(50, 7, 200, 200), GateSize(0, 0, 0, 0)])
def test_gate_with_too_few_users_or_questions_shows_nothing(size: GateSize) -> None:
    assert smallest_share(size, 0.025) is None
    assert "too small" in describe(size, 0.025)


def test_description_names_users_items_and_share() -> None:
    share = smallest_share(MIDDLE, 0.025)
    assert share is not None
    text = describe(MIDDLE, 0.025)
    assert "500 items of 40 held-out users" in text
    assert f"fixes {np.ceil(100 * share):.0f} % of what they corrected" in text


@pytest.mark.parametrize("users", [25, 50])
def test_share_is_found_about_as_often_as_promised(users: int) -> None:
    service = Service(flips=0.2, accuracy=0.5, likes=1 / 3, users=users)
    sizes = [
        (len(np.unique(drawn.facts)), len(drawn.users), drawn.corrected)
        for drawn in draw(service, [NO_BETTER], 40, seed=3)
    ]
    groups, items, corrected = np.mean(sizes, axis=0).astype(int).tolist()
    share = smallest_share(GateSize(users, groups, items, corrected), 0.025)
    assert share is not None
    found = [
        is_better(drawn.against_stable[0], drawn.users, drawn.facts)
        and is_better(drawn.against_control[0], drawn.users, drawn.facts)
        for drawn in draw(service, [Candidate(share)], 150, seed=5)
    ]
    assert 0.65 <= np.mean(found) <= 0.98
