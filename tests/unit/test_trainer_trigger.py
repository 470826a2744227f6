from __future__ import annotations

import pytest

from services.trainer.settings import Thresholds
from services.trainer.trigger import Waiting, decide

HOUR = 3_600_000
RULE = Thresholds(examples=200, users=20, aged_examples=50, age_s=24 * 3600.0)


@pytest.mark.parametrize(
    ("waiting", "hours", "starts"),
    [
        (Waiting(200, 20, 0), 1, True),
        (Waiting(199, 60, 0), 1, False),
        (Waiting(900, 19, 0), 1, False),
        (Waiting(50, 3, 0), 24, True),
        (Waiting(49, 40, 0), 90, False),
        (Waiting(50, 3, 0), 23, False),
        (Waiting(0, 0, None), 90, False),
    ],
)
def test_a_run_starts_with_enough_from_enough_users_or_with_fewer_that_waited(
    waiting: Waiting, hours: int, starts: bool
) -> None:
    assert decide(waiting, RULE, hours * HOUR).start is starts


def test_a_command_starts_with_anything_usable_and_is_refused_with_nothing() -> None:
    assert decide(Waiting(1, 1, 0), RULE, 0, commanded=True).start
    refused = decide(Waiting(0, 0), RULE, 0, commanded=True)
    assert not refused.start
    assert "nothing usable" in refused.reason


def test_the_reason_says_what_is_missing() -> None:
    assert (
        decide(Waiting(12, 3, 0), RULE, 0).reason
        == "12 usable new examples from 3 users; a run needs 200 from 20"
    )
