"""Model of the canary's card: both arms with their intervals over time, and why it waits."""

from __future__ import annotations

from dataclasses import dataclass

from services.console.core.responses import Json
from services.console.pages import formatting as fmt


@dataclass(frozen=True, slots=True)
class ArmRow:
    """One version's users in the present step."""

    name: str
    version: str
    seen: str
    users: str
    satisfied: str
    failed: str
    latency: str


@dataclass(frozen=True, slots=True)
class BandPoint:
    """The intervals of both arms at one time, from 0 (the first point) to 1 (the last)."""

    at: float
    canary: tuple[float, float, float | None]
    """Lower end, upper end, mean."""
    stable: tuple[float, float, float | None]


@dataclass(frozen=True, slots=True)
class CanaryView:
    """The canary that is tried, or the last one."""

    title: str
    is_over: bool
    reason: str
    waits_for: tuple[str, ...]
    arms: tuple[ArmRow, ...]
    harm: str
    promotion: str
    points: tuple[BandPoint, ...]
    began: str
    ended: str


def canary_view(state: Json | None) -> CanaryView | None:
    """Return the card for the body of `GET /api/rollout/{line}`, or None if no canary was ever tried."""
    test = None if state is None else state["test"]
    if state is None or test is None:
        return None
    is_over = state["canary"] is None
    version = fmt.short_version(test["canary"]["version"])
    title = f"{version}, {test['share']:.0%} of the users"
    times = [time for point in state["points"] if (time := fmt.parse_time(point["at"])) is not None]
    return CanaryView(
        title=f"Last canary: {title}" if is_over else title,
        is_over=is_over,
        reason=state["reason"],
        waits_for=tuple(state["waits_for"]),
        arms=(_arm("Canary", test["canary"]), _arm("Stable", test["stable"])),
        harm=f"p = {test['harm_p']:.2g}, rolled back at {test['harm_alpha']:.2g}",
        promotion=f"p = {test['promotion_p']:.2g}, takes over in the last step at {test['promotion_alpha']:.2g}",
        points=_points(state["points"]),
        began=fmt.timestamp(times[0]) if times else "",
        ended=fmt.timestamp(times[-1]) if times else "",
    )


def _arm(name: str, arm: Json) -> ArmRow:
    satisfied = "–"
    if arm["mean"] is not None:
        satisfied = f"{arm['mean']:.0%} ({arm['low']:.0%} to {arm['high']:.0%})"
    return ArmRow(
        name=name,
        version=fmt.short_version(arm["version"]),
        seen=fmt.number(arm["seen"]),
        users=fmt.number(arm["users"]),
        satisfied=satisfied,
        failed="–" if arm["failed"] is None else f"{arm['failed']:.1%}",
        latency="–" if arm["latency_ms"] is None else f"{arm['latency_ms'] / 1000:.2f} s",
    )


def _points(points: list[Json]) -> tuple[BandPoint, ...]:
    times = [fmt.parse_time(point["at"]) for point in points]
    if len(times) < 2 or times[0] is None or times[-1] is None:
        return ()
    first, seconds = times[0], max(1e-3, (times[-1] - times[0]).total_seconds())
    return tuple(
        BandPoint(
            at=0.0 if time is None else (time - first).total_seconds() / seconds,
            canary=(point["canary_low"], point["canary_high"], point["canary_mean"]),
            stable=(point["stable_low"], point["stable_high"], point["stable_mean"]),
        )
        for time, point in zip(times, points, strict=True)
    )
