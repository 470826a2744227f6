"""How near the next run is, and how far the present one. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from services.console.core.responses import Json
from services.console.pages import formatting as say

ENDED = frozenset({"published", "failed", "erased"})
SILENT_S = 60.0


@dataclass(frozen=True, slots=True)
class Bar:
    """`share` of what is needed, 0..1, more than enough is 1."""

    name: str
    text: str
    share: float


@dataclass(frozen=True, slots=True)
class Threshold:
    """What is collected towards the next run. `held`: (reason, how many), most first."""

    usable: int
    text: str
    bars: tuple[Bar, ...]
    held: tuple[tuple[str, str], ...]
    asides: tuple[str, ...]
    told: str


@dataclass(frozen=True, slots=True)
class Progress:
    """A run. `left` is empty where the end is not known; `share` is 0..1, None where a stage does not say."""

    run_id: str
    stage: str
    active: bool
    failed: bool
    share: float | None
    steps: str
    loss: str
    speed: str
    left: str
    detail: str
    silent: str
    losses: tuple[tuple[int, float], ...]


def threshold_of(collected: Json | None, now: datetime) -> Threshold | None:
    """None where the trainer's figures are not there (it has told none yet, or Redis was wiped)."""
    if collected is None:
        return None
    usable, needed = say.whole(collected.get("usable")), say.whole(collected.get("needed"))
    users, users_needed = say.whole(collected.get("users")), say.whole(collected.get("users_needed"))
    if usable is None or not needed:
        return None
    bars = [_bar("usable examples", usable, needed)]
    if users is not None and users_needed:
        bars.append(_bar("users behind them", users, users_needed))
    told = say.moment(collected.get("updated_at"))
    return Threshold(
        usable=usable,
        text=f"{say.number(usable)} of {say.number(needed)} usable examples",
        bars=tuple(bars),
        held=_held(collected.get("held")),
        asides=_asides(collected),
        told=f"told {say.ago(told, now)}" if told is not None else "",
    )


def _bar(name: str, have: int, needed: int) -> Bar:
    joint = " of " if have < needed else ", needed "
    return Bar(name, f"{say.number(have)}{joint}{say.number(needed)}", min(1.0, have / needed))


def _held(held: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(held, dict):
        return ()
    counted = [(str(reason), n) for reason, count in held.items() if (n := say.whole(count))]
    return tuple(
        (reason, say.number(n)) for reason, n in sorted(counted, key=lambda item: (-item[1], item[0]))
    )


def _asides(collected: Json) -> tuple[str, ...]:
    told = []
    if heldout := say.whole(collected.get("heldout")):
        told.append(f"{say.number(heldout)} kept aside for the gate")
    if batches := say.whole(collected.get("batches")):
        told.append(f"{say.count(batches, 'batch', 'batches')} read")
    return tuple(told)


def progress_of(run: Json | None, losses: tuple[tuple[int, float], ...], now: datetime) -> Progress | None:
    """None where no run has been told of."""
    if run is None or not isinstance(run.get("stage"), str):
        return None
    stage, step, steps = run["stage"], say.whole(run.get("step")), say.whole(run.get("steps"))
    active = stage not in ENDED
    eta, speed, loss = (say.figure(run.get(name)) for name in ("eta_s", "tokens_per_s", "loss"))
    told = say.moment(run.get("updated_at"))
    silence = (now - told).total_seconds() if told is not None else 0.0
    return Progress(
        run_id=str(run.get("run_id", "")),
        stage=say.stage_of(stage),
        active=active,
        failed=stage == "failed",
        share=min(1.0, step / steps) if step is not None and steps else None,
        steps=f"{say.number(step)} of {say.number(steps)}" if step is not None and steps else "",
        loss=f"{loss:.3f}" if loss is not None else "",
        speed=say.number(round(speed)) if speed is not None else "",
        left=say.span(eta) if eta is not None and active else "",
        detail=str(run.get("version") or run.get("reason") or ""),
        silent=f"nothing heard for {say.span(silence // 60 * 60)}" if active and silence > SILENT_S else "",
        losses=losses,
    )
