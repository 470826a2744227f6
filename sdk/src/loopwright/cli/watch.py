"""`loopwright watch`: a training run as it goes, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import sleep
from typing import Annotated, Any, Final

import typer

from loopwright.cli.common import AsJson, ConsoleUrl, LineName, connected, escaped, out, print_json

ENDED: Final = frozenset({"published", "failed", "erased"})
Told = Mapping[str, Any]


def watch(
    context: typer.Context,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 1.0,
    line: LineName = None,
    console_url: ConsoleUrl = None,
    as_json: AsJson = False,
) -> None:
    """Follow the training run until it ends. Ctrl-C ends the watching, not the run.

    Example: loopwright watch
    """
    with connected(context, as_json, console_url=console_url) as loop:

        def look() -> Told | None:
            run = (loop.status(line).model_extra or {}).get("run")
            return run if isinstance(run, dict) and run.get("stage") else None

        try:
            found = follow(look, lambda run: print_json(run) if as_json else out.print(told_of(run)), every)
        except KeyboardInterrupt:
            raise typer.Exit(0) from None
    if not found:
        out.print("no run has been told of" if not as_json else "null")


def follow(look: Callable[[], Told | None], show: Callable[[Told], None], every: float) -> bool:
    """Shows what changes until the run has ended; returns whether there was one. It ends with what `look` gives first
    where no run is under way."""
    shown: Told | None = None
    while (run := look()) is not None:
        if shown is None or _mark(run) != _mark(shown):
            show(run)
            shown = run
        if run["stage"] in ENDED:
            break
        sleep(every)
    return shown is not None


def _mark(run: Told) -> tuple[Any, ...]:
    return tuple(run.get(name) for name in ("run_id", "stage", "step", "reason"))


def told_of(run: Told) -> str:
    """One line: `training 12/40 30 %, loss 1.204, 169 tokens/s, 48 s left`."""
    step, steps = run.get("step"), run.get("steps")
    done = f" {step}/{steps} {round(100 * float(run.get('share') or 0))} %" if steps else ""
    figures = [
        f"loss {run['loss']:g}" if isinstance(run.get("loss"), int | float) else "",
        f"{run['tokens_per_s']:.0f} tokens/s" if isinstance(run.get("tokens_per_s"), int | float) else "",
        f"{_span(run['eta_s'])} left" if isinstance(run.get("eta_s"), int | float) else "",
        *(escaped(str(run[name])) for name in ("verdict", "version", "reason") if run.get(name)),
    ]
    return ", ".join([f"[bold]{escaped(str(run['stage']))}[/]{done}", *filter(None, figures)])


def _span(seconds: float) -> str:
    """`48 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
