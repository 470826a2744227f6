"""`make bench-worlds`: runs all arms of all worlds one after the other, and prints the table and the bars."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from benchmarks.machine import machine
from benchmarks.trainer_run import PREPARED, ProcessFailed, find_benchmark_base
from benchmarks.worlds import report
from benchmarks.worlds.arms import (
    ARM_NAMES,
    DEFAULT_ARMS,
    RESULT,
    SEEDS,
    Arm,
    Bench,
    arms_of,
    code_digest,
    run_arm,
)
from benchmarks.worlds.world import DATA, WORLDS
from deploy.local.model import REPLAY_FOLDER
from services.trainer.files import write_whole
from shared.events import canonical_json, sha256

RESULTS = Path(__file__).parent.with_name("worlds.json")
FAILED, INTERRUPTED = 1, 130
"""Exit codes."""
BASE_WORK = 0.2
"""Work of measuring the base, relative to that of an arm that trains in the same world."""
STAGES = {"training": (0.15, 0.75), "gate": (0.75, 0.9), "measuring": (0.9, 1.0)}
"""Shares of an arm's work before and after a stage."""
Name = TypeVar("Name", bound=str)
app = typer.Typer(add_completion=False)


@app.command()
def main(
    world: Annotated[
        list[str] | None, typer.Option(help=f"Run only this world: {', '.join(WORLDS)}. Repeatable.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Run only this seed. Repeatable.")] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Run only this arm: {', '.join(ARM_NAMES)}. Repeatable. Default: {', '.join(DEFAULT_ARMS)}."
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Use the tiny model and small worlds, to check that everything runs."),
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if a bar is not reached.")] = False,
    base: Annotated[str, typer.Option(help="Folder or Hugging Face id of another base model.")] = "",
    folder: Annotated[Path, typer.Option(help="Folder for the runs and results.")] = PREPARED / "worlds",
    output: Annotated[
        Path | None,
        typer.Option(
            "--json", help="File for the results. Default: benchmarks/worlds.json; a quick run's folder."
        ),
    ] = None,
) -> None:
    """Run the rest of the benchmark (hours). Press Ctrl-C to stop; the same command resumes."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console()
    worlds = chosen("world", WORLDS, world) or WORLDS
    names = chosen("arm", ARM_NAMES, arm) or DEFAULT_ARMS
    bench = prepare(quick, base, folder)
    target = output or (bench.folder / "worlds.json" if quick else RESULTS)
    arms = arms_of(worlds, seed or ((SEEDS[0],) if quick else SEEDS), names)
    try:
        run_all(bench, arms, target, console)
    except KeyboardInterrupt:
        console.print("Stopped. Run the same command again to resume.")
        raise typer.Exit(INTERRUPTED) from None
    except ProcessFailed as failure:
        console.print(f"[red]{failure}")
        raise typer.Exit(FAILED) from None
    summary = write_report(bench, target)
    print_report(summary, console)
    console.print(f"Results: {target}. Runs: {bench.folder}.")
    if strict and not all(bar["reached"] for bar in summary["bars"]):
        raise typer.Exit(FAILED)


def chosen(option: str, names: Sequence[Name], wanted: Sequence[str] | None) -> tuple[Name, ...]:
    """Return the names that were given to an option, in the order of `names`.

    Raises:
        typer.BadParameter: There is no such name.
    """
    unknown = set(wanted or ()) - set(names)
    if unknown:
        raise typer.BadParameter(
            f"unknown {option} {min(unknown)!r}: use one of {', '.join(names)}", param_hint=f"--{option}"
        )
    return tuple(name for name in names if name in (wanted or ()))


def prepare(quick: bool, base: str, folder: Path) -> Bench:
    """Find or download the base, and return the benchmark. Results of other worlds or another base are kept apart."""
    pinned = find_benchmark_base(base, quick)
    content = [sha256(path.read_bytes()) for path in sorted(DATA.glob("*.json"))]
    digest = sha256(canonical_json([content, pinned.digest, quick]))[:8]
    own = (folder / digest).resolve()
    own.mkdir(parents=True, exist_ok=True)
    return Bench(own, pinned, own / REPLAY_FOLDER if quick else (PREPARED / REPLAY_FOLDER).resolve(), quick)


def run_all(bench: Bench, arms: list[Arm], target: Path, console: Console) -> None:
    """Run the arms that have no result yet, and write the report after each.

    Raises:
        ProcessFailed: A process of an arm failed.
    """
    left = [arm for arm in arms if bench.result(arm) is None]
    console.print(f"{len(arms)} arms, {len(arms) - len(left)} done, in {bench.folder}")
    with Progress(
        TextColumn("{task.description:<44}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=3600,
    ) as progress:
        task = progress.add_task("all arms", total=sum(work(bench, arm) for arm in left))
        done = 0.0
        for arm in left:

            def show(stage: str, share: float, arm: Arm = arm, done: float = done) -> None:
                completed = done + work(bench, arm) * share_done(stage, share)
                progress.update(task, description=f"{arm.key}: {stage}"[:44], completed=completed)

            result = run_arm(bench, arm, show)
            done += work(bench, arm)
            progress.update(task, completed=done)
            write_report(bench, target)
            console.print(f"{arm.key}: {result.get('verdict', 'measured')} ({result['seconds']:.0f} s)")


def work(bench: Bench, arm: Arm) -> float:
    """Return the work of an arm, in examples of a training arm. It decides the time that is shown as left."""
    return bench.world(arm.world).examples * (BASE_WORK if arm.name == "base" else 1.0)


def share_done(stage: str, share: float) -> float:
    """Return the approximate share of an arm's work that is done within a stage, at a share of that stage."""
    start, end = next((ends for name, ends in STAGES.items() if stage.startswith(name)), (0.0, 0.0))
    return start + share * (end - start)


# --- the report -----------------------------------------------------------------------------------------------------


def write_report(bench: Bench, target: Path) -> dict[str, Any]:
    """Write the results of all arms that are done, whichever command ran them, and return them."""
    results = [json.loads(file.read_bytes()) for file in sorted(bench.folder.glob(f"*/{RESULT}"))]
    figures = report.compute_figures(results)
    summary = {
        "bench": "worlds",
        "quick": bench.quick,
        "base": bench.base.name,
        "bars": report.bars_as_fields(report.check_bars(figures, SEEDS)),
        "worlds": figures,
        "minutes": round(sum(result["seconds"] for result in results) / 60, 1),
        "same_code": {result["code"] for result in results} <= {code_digest()},
        "machine": machine(),
    }
    write_whole(target, (json.dumps(summary, indent=1, ensure_ascii=False) + "\n").encode())
    return summary


def print_report(summary: dict[str, Any], console: Console) -> None:
    """Print a table of the arms, and the bars."""
    title = "Worlds (quick form: the figures mean nothing)" if summary["quick"] else "Worlds"
    table = Table(title=title)
    for column in (
        "world",
        "arm",
        "seed",
        "unseen wordings right",
        "general",
        "verdict",
        "tokens/s",
        "peak MB",
        "s",
    ):
        table.add_column(column)
    for world, arms in summary["worlds"].items():
        for name, seeds in arms.items():
            for arm in seeds:
                unseen, general = arm["unseen"], arm["general"]
                change = f" ({100 * general['change']:+.1f})" if "change" in general else ""
                table.add_row(
                    world,
                    name,
                    str(arm["seed"]),
                    f"{unseen['right']} of {unseen['questions']} ({report.points(unseen['share'])} %)",
                    f"{report.points(general['share'])} %{change}",
                    arm.get("verdict", ""),
                    str(arm.get("tokens_per_s", "")),
                    str(arm.get("peak_mb", "")),
                    f"{arm['seconds']:.0f}",
                )
    console.print(table)
    for bar in summary["bars"]:
        mark = {True: "[green]reached[/]", False: "[red]NOT REACHED[/]", None: "not measured"}[bar["reached"]]
        console.print(f"{mark}  {bar['world']}: {bar['name']}: {bar['found']} (wanted: {bar['wanted']})")
    if not summary["same_code"]:
        console.print(
            "[yellow]Some arms ran with other code than the present one. Delete them to run them again."
        )


if __name__ == "__main__":
    app()
