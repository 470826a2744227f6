"""`make experiment`: runs all arms one after the other, then prints the table and the bars and draws the plot."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import resumable
from benchmarks.experiment import eta, plot, statistics
from benchmarks.experiment.arms import ARMS, QUICK, Arm, Sizes, all_arms
from benchmarks.experiment.run import PACKAGE, Experiment, run_arm
from benchmarks.resumable import BaseOption, FolderOption, QuickOption, StrictOption
from benchmarks.trainer_run import PREPARED, find_benchmark_base, run_module
from services.trainer.base.base_answers import (
    EVAL_PROMPTS,
    REPLAY_PROMPTS,
    SAFETY_PROMPTS,
    SKILL_PROMPTS,
    shipped_prompts,
)
from services.trainer.base.shape import base_shape
from services.trainer.core.eval_size import SKILL_TOKENS, eval_size
from services.trainer.files import write_whole

RESULTS = Path(__file__).parent.with_name("experiment.json")
app = typer.Typer(add_completion=False)


@app.command()
def main(
    quick: QuickOption = False,
    strict: StrictOption = False,
    base: BaseOption = "",
    folder: FolderOption = PREPARED / "experiment",
    output: Annotated[
        Path | None, typer.Option(help="JSON file for the results. The plot is written next to it.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Run only this arm, for example facts-corrections-1. Repeatable.")
    ] = None,
) -> None:
    """Run the rest of the experiment. Press Ctrl-C to stop; the same command resumes."""
    console = Console()
    with resumable.exit_codes(console):
        experiment = prepare(quick, base, folder)
        selected = [arm for arm in arms_to_run(experiment) if not only or arm.key in only]
        left = resumable.arms_left(experiment, selected, console)
        if left and not quick:
            print_estimate(experiment, left, console)
        resumable.run_arms(left, partial(run_arm, experiment), console)
    report = make_report(experiment)
    target = output or (experiment.folder / "experiment.json" if quick or only else RESULTS)
    resumable.write_report(report, target)
    write_whole(target.with_suffix(".svg"), plot.svg(report["figures"]).encode())
    print_tables(report, console)
    resumable.print_bars(report, console)
    console.print(f"Results: {target} and {target.with_suffix('.svg').name}. Runs: {experiment.folder}.")
    resumable.check_strict(report, strict)


def prepare(quick: bool, base: str, folder: Path) -> Experiment:
    """Find or download the base model and return the experiment. Settings of a deployment in this shell are ignored."""
    pinned = find_benchmark_base(base, quick)
    sizes = QUICK if quick else Sizes()
    own, replay = resumable.prepare_folders(folder, sizes.to_dict(), pinned, quick)
    return Experiment(own, pinned, replay, quick, sizes)


def arms_to_run(experiment: Experiment) -> list[Arm]:
    """Return the arms; the quick form has only the first seed."""
    sizes = experiment.sizes
    return [arm for arm in all_arms(sizes) if not experiment.quick or arm.seed == sizes.seeds[0]]


# --- the estimate ---------------------------------------------------------------------------------------------------


def print_estimate(experiment: Experiment, left: list[Arm], console: Console) -> None:
    """Print how long the arms will take, from training steps that are timed now."""
    output = experiment.folder / "speed.json"
    console.print("Measuring the speed of this machine ...")
    run_module(
        "benchmarks.experiment.machine_speed",
        experiment.folder / "speed.log",
        str(experiment.base.path),
        str(experiment.threads),
        str(output),
    )
    speed = eta.Speed(**json.loads(output.read_bytes()))
    recipes = {arm.scenario: experiment.recipe(arm) for arm in all_arms(experiment.sizes)}
    seconds = eta.estimate_seconds(
        left, all_results(experiment), experiment.sizes, recipes, speed, count_missing_prompts(experiment)
    )
    end = datetime.now(UTC).astimezone() + timedelta(seconds=seconds)
    console.print(
        f"An SFT step takes {speed.sft_step_s:.2f} s, a KTO step {speed.kto_step_s:.2f} s, and the base generates "
        f"{speed.tokens_per_s:.0f} tokens/s. {len(left)} arms take about {seconds / 60:.0f} minutes, until {end:%H:%M}."
    )


def count_missing_prompts(experiment: Experiment) -> int:
    """Return the number of shipped prompts that the base has not answered yet."""
    needed: set[str] = set()
    weights = base_shape(experiment.base.path).weights
    for recipe in (experiment.recipe(arm) for arm in all_arms(experiment.sizes)):
        size = eval_size(recipe, "cpu", weights)
        for file, count in (
            (REPLAY_PROMPTS, recipe.replay_prompts),
            (EVAL_PROMPTS, recipe.gate_eval_prompts),
            (SAFETY_PROMPTS, size.safety),
            *((SKILL_PROMPTS.format(name), size.skills) for name in SKILL_TOKENS),
        ):
            needed |= {prompt.id for prompt in shipped_prompts(file, count)}
    files = experiment.replay.glob(f"{experiment.base.digest[:8]}*.jsonl")
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return len(needed - {json.loads(line)["id"] for line in lines})


def all_results(experiment: Experiment) -> list[dict[str, Any]]:
    """Return the results of all arms that are done."""
    return [result for arm in all_arms(experiment.sizes) if (result := experiment.result(arm)) is not None]


# --- the report -----------------------------------------------------------------------------------------------------


def make_report(experiment: Experiment) -> dict[str, Any]:
    """Return the content of `experiment.json`."""
    done = all_results(experiment)
    figures = statistics.compute_figures(done)
    return resumable.make_report(
        "experiment",
        experiment,
        statistics.check_bars(figures),
        done,
        resumable.code_digest(PACKAGE),
        figures=figures,
        sizes=experiment.sizes.to_dict(),
        arms=[
            {name: result[name] for name in ("world", "arm", "seed", "seconds", "code")} for result in done
        ],
    )


def print_tables(report: dict[str, Any], console: Console) -> None:
    """Print a table for each scenario."""
    for scenario in ARMS:
        table = Table(
            title=f"Scenario: {scenario}"
            + (" (quick form: the figures mean nothing)" if report["quick"] else "")
        )
        measured = "correct" if scenario == "facts" else "short and direct"
        for column in (
            "arm",
            f"held-out answers: {measured}",
            "gain over base [95 %]",
            "general accuracy",
            "poison learned",
            "verdicts by seed",
        ):
            table.add_column(column)
        for name, arm in report["figures"].get(scenario, {}).items():
            table.add_row(name, *table_cells(arm))
        console.print(table)


def table_cells(arm: dict[str, Any]) -> list[str]:
    """Return the cells of an arm's row, without its name."""
    held_out = (
        f"{arm['right']} of {arm['questions']}" if "right" in arm else f"{arm['liked']} of {arm['answers']}"
    )
    gain = arm["gain"]
    gain_cell = ""
    if gain["low"] is not None and "verdicts" in arm:
        interval = f"[{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]"
        gain_cell = f"{statistics.points(gain['value'])} {interval}"
    general = arm.get("general_change")
    return [
        held_out,
        gain_cell,
        "" if general is None else statistics.points(general),
        str(arm.get("poison_learned", "")),
        ", ".join(arm.get("verdicts", {}).values()),
    ]


if __name__ == "__main__":
    app()
