"""`loopwright watch`: follow a training run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import sleep
from typing import Annotated, Any, Final

import typer
from rich.markup import escape

from loopwright.cli.common import AsJson, ConsoleUrl, LineName, connect, out, print_json

FINAL_STAGES: Final = frozenset({"published", "failed", "erased"})
RunProgress = Mapping[str, Any]
"""Progress of a run, as the console reports it."""


def watch(
    context: typer.Context,
    every: Annotated[float, typer.Option(min=0.2, help="Interval between two requests, in seconds.")] = 1.0,
    line: LineName = None,
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """Follow the newest training run until it ends. Ctrl-C stops watching; the run continues.

    Prints a line whenever the run's stage or step changes.

    Example: loopwright watch
    """
    with connect(context, as_json, console_url=console_url) as loop:

        def current_run() -> RunProgress | None:
            run = (loop.status(line).model_extra or {}).get("run")
            return run if isinstance(run, dict) and run.get("stage") else None

        def show(run: RunProgress) -> None:
            if as_json:
                print_json(run)
            else:
                out.print(format_progress(run))

        try:
            any_run = follow(current_run, show, every)
        except KeyboardInterrupt:
            raise typer.Exit(0) from None
    if not any_run:
        out.print("null" if as_json else "no training run yet")


def follow(
    current_run: Callable[[], RunProgress | None], show: Callable[[RunProgress], None], every: float
) -> bool:
    """Show a run's progress whenever it changes, until the run ends. Return False if there is no run."""
    last: RunProgress | None = None
    while (run := current_run()) is not None:
        if last is None or _state(run) != _state(last):
            show(run)
            last = run
        if run["stage"] in FINAL_STAGES:
            break
        sleep(every)
    return last is not None


def _state(run: RunProgress) -> tuple[Any, ...]:
    """Return the fields whose change is worth a line."""
    return tuple(run.get(name) for name in ("run_id", "stage", "step", "reason"))


def format_progress(run: RunProgress) -> str:
    """Return one line, for example `training 12/40 30 %, loss 1.204, 169 tokens/s, 48 s left`."""
    step, steps = run.get("step"), run.get("steps")
    share = f" {step}/{steps} {round(100 * float(run.get('share') or 0))} %" if steps else ""
    figures = [
        f"loss {run['loss']:g}" if isinstance(run.get("loss"), int | float) else "",
        f"{run['tokens_per_s']:.0f} tokens/s" if isinstance(run.get("tokens_per_s"), int | float) else "",
        f"{_format_duration(run['eta_s'])} left" if isinstance(run.get("eta_s"), int | float) else "",
        *(escape(str(run[name])) for name in ("verdict", "version", "reason") if run.get(name)),
    ]
    return ", ".join([f"[bold]{escape(str(run['stage']))}[/]{share}", *filter(None, figures)])


def _format_duration(seconds: float) -> str:
    """Return for example `48 s`, `12 min` or `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
