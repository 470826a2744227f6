"""`make bench-worlds`: runs all arms of all worlds one after the other, and prints the table and the bars."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import resumable
from benchmarks.resumable import RESULT, BaseOption, FolderOption, QuickOption, StrictOption
from benchmarks.trainer_run import PREPARED, find_benchmark_base
from benchmarks.worlds import report
from benchmarks.worlds.arms import (
    ARM_NAMES,
    DEFAULT_ARMS,
    PACKAGE,
    SEEDS,
    Arm,
    Bench,
    arms_of,
    run_arm,
)
from benchmarks.worlds.world import DATA, WORLDS
from shared.events import sha256

RESULTS = Path(__file__).parent.with_name("worlds.json")
BASE_WORK = 0.2
"""Work of measuring the base, relative to that of an arm that trains in the same world."""
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
    quick: QuickOption = False,
    strict: StrictOption = False,
    base: BaseOption = "",
    folder: FolderOption = PREPARED / "worlds",
    output: Annotated[
        Path | None,
        typer.Option(
            "--json", help="File for the results. Default: benchmarks/worlds.json; a quick run's folder."
        ),
    ] = None,
) -> None:
    """Run the rest of the benchmark (hours). Press Ctrl-C to stop; the same command resumes."""
    console = Console()
    worlds = chosen("world", WORLDS, world) or WORLDS
    names = chosen("arm", ARM_NAMES, arm) or DEFAULT_ARMS
    arms = arms_of(worlds, seed or ((SEEDS[0],) if quick else SEEDS), names)
    with resumable.exit_codes(console):
        bench = prepare(quick, base, folder)
        target = output or (bench.folder / "worlds.json" if quick else RESULTS)
        resumable.run_arms(
            resumable.arms_left(bench, arms, console),
            partial(run_arm, bench),
            console,
            work=partial(work, bench),
            after_arm=lambda: resumable.write_report(make_report(bench), target),
        )
    summary = make_report(bench)
    resumable.write_report(summary, target)
    print_table(summary, console)
    resumable.print_bars(summary, console)
    console.print(f"Results: {target}. Runs: {bench.folder}.")
    resumable.check_strict(summary, strict)


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
    """Find or download the base, and return the benchmark."""
    pinned = find_benchmark_base(base, quick)
    content = [sha256(path.read_bytes()) for path in sorted(DATA.glob("*.json"))]
    own, replay = resumable.prepare_folders(folder, content, pinned, quick)
    return Bench(own, pinned, replay, quick)


def work(bench: Bench, arm: Arm) -> float:
    """Return the work of an arm, in examples of a training arm."""
    return bench.world(arm.world).examples * (BASE_WORK if arm.name == "base" else 1.0)


# --- the report -----------------------------------------------------------------------------------------------------


def make_report(bench: Bench) -> dict[str, Any]:
    """Return the content of `worlds.json`: the results of all arms that are done, whichever command ran them."""
    results = [json.loads(file.read_bytes()) for file in sorted(bench.folder.glob(f"*/{RESULT}"))]
    figures = report.compute_figures(results)
    bars = report.check_bars(figures, SEEDS)
    return resumable.make_report(
        "worlds", bench, bars, results, resumable.code_digest(PACKAGE), worlds=figures
    )


def print_table(summary: dict[str, Any], console: Console) -> None:
    """Print a table of the arms."""
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


if __name__ == "__main__":
    app()
