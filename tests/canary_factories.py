"""Records of a canary for tests of the console and of the client."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from shared.versions import CanaryArm, CanaryPoint, CanaryStatus, CanaryTest

BEGAN = datetime(2026, 3, 4, tzinfo=UTC)
STABLE, CANARY = "assistant@v1-11111111", "assistant@v2-22222222"


def canary_test(canary: str = CANARY, stable: str = STABLE, **fields: Any) -> CanaryTest:
    return CanaryTest(
        share=0.05,
        step_began_at=BEGAN,
        deadline_at=BEGAN + timedelta(days=14),
        canary=CanaryArm(
            version=canary, seen=90, users=31, mean=0.74, low=0.55, high=0.88, failed=0.01, latency_ms=812
        ),
        stable=CanaryArm(version=stable, seen=1800, users=612, mean=0.71, low=0.66, high=0.76, failed=0.0),
        harm_p=1.0,
        harm_alpha=0.02,
        promotion_p=0.31,
        promotion_alpha=0.05,
        margin=0.05,
        waits_for=("29 min more in this step",),
    ).model_copy(update=fields)


def canary_status(seq: int = 2, minutes: int = 30, canary: str = CANARY, **fields: Any) -> CanaryStatus:
    points = tuple(
        CanaryPoint(
            at=BEGAN + timedelta(minutes=at), share=0.05, canary_users=at, canary_low=0.2, canary_mean=0.7,
            canary_high=0.9, stable_users=20 * at, stable_low=0.6, stable_mean=0.7, stable_high=0.8,
        )
        for at in range(0, minutes, 10)
    )  # fmt: skip
    return CanaryStatus(
        line="assistant", seq=seq, test=canary_test(canary, **fields), points=points,
        updated_at=BEGAN + timedelta(minutes=minutes),
    )  # fmt: skip
