"""View of the progress towards the next run, and of the newest run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from services.console.pages import formatting as fmt
from shared.live_status import CollectedStatus, RunProgress
from shared.run_stage import ENDED_STAGES, RunStage, run_stage

STALE_S: Final = 60.0
"""A run in progress that has not reported for longer than this is marked."""


@dataclass(frozen=True, slots=True)
class ProgressBar:
    """One bar. `share` is 0..1; more than enough is 1."""

    name: str
    text: str
    share: float


@dataclass(frozen=True, slots=True)
class ThresholdView:
    """Data collected towards the next run."""

    usable: int
    text: str
    bars: tuple[ProgressBar, ...]
    quarantined: tuple[tuple[str, str], ...]
    """(reason, number of examples), most first."""
    notes: tuple[str, ...]
    problem: str
    """Why no run can start, or an empty text."""


@dataclass(frozen=True, slots=True)
class RunView:
    """A run. A text is empty, and `share` None, if the stage does not report it."""

    run_id: str
    stage: str
    task: str
    """What the run does within the stage."""
    active: bool
    failed: bool
    share: float | None
    """Share of the stage's steps that is done, 0..1."""
    steps: str
    loss: str
    speed: str
    time_left: str
    detail: str
    staleness: str
    losses: tuple[tuple[int, float], ...]
    """(step, loss)."""

    @property
    def stage_and_task(self) -> str:
        """The stage with its task: `in the gate (candidate: answers)`."""
        return f"{self.stage} ({self.task})" if self.task else self.stage


def threshold_view(collected: CollectedStatus | None, now: datetime) -> ThresholdView | None:
    """Return the view, or None if the trainer's status is not known."""
    if collected is None or not collected.needed:
        return None
    bars = [_bar("Usable examples", collected.usable, collected.needed)]
    if collected.users_needed:
        bars.append(_bar("Users", collected.users, collected.users_needed))
    notes = [f"{fmt.count(collected.batches, 'batch', 'batches')} read"] if collected.batches else []
    if collected.device:
        notes.append(f"trains on {collected.device}")
    notes.append(f"updated {fmt.ago(collected.updated_at, now)}")
    return ThresholdView(
        usable=collected.usable,
        text=f"{fmt.number(collected.usable)} of {fmt.number(collected.needed)} usable examples",
        bars=tuple(bars),
        quarantined=_quarantined(collected.held),
        notes=tuple(notes),
        problem=collected.device_problem or "",
    )


def run_view(run: RunProgress | None, losses: tuple[tuple[int, float], ...], now: datetime) -> RunView | None:
    """Return the view, or None if no run is known."""
    if run is None:
        return None
    stage = run_stage(run.stage)
    words, task = fmt.describe_stage(run.stage)
    active = stage not in ENDED_STAGES
    silent_s = (now - run.updated_at).total_seconds()
    stale = active and silent_s > STALE_S
    return RunView(
        run_id=run.run_id,
        stage=words,
        task=task,
        active=active,
        failed=stage is RunStage.FAILED,
        share=min(1.0, run.step / run.steps) if run.steps else None,
        steps=f"{fmt.number(run.step)} of {fmt.number(run.steps)}" if run.steps else "",
        loss=f"{run.loss:.3f}" if run.loss is not None else "",
        speed=fmt.number(round(run.tokens_per_s)) if run.tokens_per_s is not None else "",
        time_left=fmt.duration(run.eta_s) if run.eta_s is not None and active else "",
        detail=f"version {run.version}" if run.version else run.reason or "",
        staleness=f"no update for {fmt.duration(silent_s // 60 * 60)}" if stale else "",
        losses=losses,
    )


def _bar(name: str, have: int, needed: int) -> ProgressBar:
    text = (
        f"{fmt.number(have)} of {fmt.number(needed)}"
        if have < needed
        else f"{fmt.number(have)} ({fmt.number(needed)} needed)"
    )
    return ProgressBar(name, text, min(1.0, have / needed))


def _quarantined(counts: Mapping[str, int]) -> tuple[tuple[str, str], ...]:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple((reason, fmt.number(examples)) for reason, examples in ordered if examples)
