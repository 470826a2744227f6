"""`make experiment`: all arms, one after the other; what is done is skipped. Then the table, the plot and the bars."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.experiment import eta, plot, statistics
from benchmarks.experiment.arms import ARMS, QUICK, Arm, Sizes, arms
from benchmarks.experiment.run import PREPARED, Failed, Lab, Tell, code, do, module
from benchmarks.machine import machine
from deploy.local.model import REPLAY, ensure_base_model, ensure_tiny_model
from services.trainer.base.base_answers import EVAL_PROMPTS, SAFETY_PROMPTS, shipped_prompts
from services.trainer.base.base_answers import REPLAY_PROMPTS as REPLAY_PROMPTS
from services.trainer.files import write_whole
from shared.adapters.base_model import find_base
from shared.errors import Misconfigured
from shared.events import canonical_json, sha256

RESULTS = Path(__file__).parent.with_name("experiment.json")
MISSED, INTERRUPTED = 1, 130
app = typer.Typer(add_completion=False)


@app.command()
def main(
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny counts and the tiny model: does all of it run?")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 where a bar is not reached.")] = False,
    base: Annotated[str, typer.Option(help="Folder or id of another base model.")] = "",
    folder: Annotated[Path, typer.Option(help="Where all of it is kept.")] = PREPARED / "experiment",
    output: Annotated[Path | None, typer.Option(help="The JSON; the plot lies beside it.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="An arm such as facts-corrections-1.")] = None,
) -> None:
    """Runs what is left of the experiment. Ctrl-C stops it in order; the same command goes on."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console()
    lab = lab_of(quick, base, folder)
    wanted = [arm for arm in chosen(lab.sizes, quick) if not only or arm.key in only]
    try:
        run_all(lab, wanted, console)
    except KeyboardInterrupt:
        console.print("Stopped. The same command goes on where it was.")
        raise typer.Exit(INTERRUPTED) from None
    except Failed as failure:
        console.print(f"[red]{failure}")
        raise typer.Exit(MISSED) from None
    report = report_of(lab)
    target = output or (lab.folder / "experiment.json" if quick or only else RESULTS)
    write_whole(target, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    write_whole(target.with_suffix(".svg"), plot.svg(report["figures"]).encode())
    show(report, console)
    console.print(f"{target}, {target.with_suffix('.svg').name}; all else lies in {lab.folder}")
    if strict and not all(bar["reached"] for bar in report["bars"]):
        raise typer.Exit(MISSED)


def lab_of(quick: bool, base: str, folder: Path) -> Lab:
    """Settings of a deployment that this shell may have do not count here."""
    given = base or os.environ.get("LOOPWRIGHT_BASE_MODEL", "")
    for name in [name for name in os.environ if name.startswith("LOOPWRIGHT_")]:
        del os.environ[name]
    try:
        made = given or str((ensure_tiny_model if quick else ensure_base_model)(PREPARED, print))
        found = find_base(made)
    except Misconfigured as fault:
        print(fault, file=sys.stderr)
        raise typer.Exit(MISSED) from None
    sizes = QUICK if quick else Sizes()
    name = sha256(canonical_json([sizes.parts(), found.digest, quick]))[:8]
    folder = (folder / name).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return Lab(folder, found, sizes, folder / REPLAY if quick else (PREPARED / REPLAY).resolve(), quick)


def chosen(sizes: Sizes, quick: bool) -> list[Arm]:
    """The quick form has one seed."""
    return [one for one in arms(sizes) if not quick or one.seed == sizes.seeds[0]]


# --- running --------------------------------------------------------------------------------------------------------


def run_all(lab: Lab, wanted: list[Arm], console: Console) -> None:
    left = [arm for arm in wanted if lab.result(arm) is None]
    console.print(f"{len(wanted)} arms, {len(wanted) - len(left)} done; kept in {lab.folder}")
    if left and not lab.quick:
        tell_time(lab, left, console)
    with Progress(
        TextColumn("{task.description:<42}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=console,
    ) as bar:
        whole = bar.add_task("all arms", total=len(wanted), completed=len(wanted) - len(left))
        for arm in left:
            task = bar.add_task(arm.key, total=1.0)

            def tell(stage: str, share: float, arm: Arm = arm, task: Any = task) -> None:
                bar.update(task, description=f"{arm.key}: {stage}", completed=share)

            told: Tell = tell
            found = do(lab, arm, told)
            bar.remove_task(task)
            bar.advance(whole)
            console.print(f"{arm.key}: {found.get('verdict', 'measured')} ({found['seconds']:.0f} s)")


def tell_time(lab: Lab, left: list[Arm], console: Console) -> None:
    """By steps that are made now, on this machine, as busy as it is."""
    out = lab.folder / "probe.json"
    console.print("Measuring how long a step takes here ...")
    module("probe", lab.folder / "probe.log", str(lab.base.path), str(lab.threads), str(out))
    speed = eta.Speed(**json.loads(out.read_bytes()))
    recipes = {arm.world: lab.recipe(arm) for arm in arms(lab.sizes)}
    needed = eta.seconds(left, results(lab), lab.sizes, recipes, speed, missing(lab))
    ends = datetime.now(UTC).astimezone() + timedelta(seconds=needed)
    console.print(
        f"A step of SFT takes {speed.sft_step_s:.2f} s, one of KTO {speed.kto_step_s:.2f} s, answers come at "
        f"{speed.tokens_per_s:.0f} tokens/s: {len(left)} arms take about {needed / 60:.0f} minutes, "
        f"until {ends:%H:%M}."
    )


def missing(lab: Lab) -> int:
    """Shipped prompts that the base was not asked yet."""
    recipes = [lab.recipe(arm) for arm in arms(lab.sizes)]
    wanted: set[str] = set()
    for recipe in recipes:
        wanted |= {one.id for one in shipped_prompts(REPLAY_PROMPTS, recipe.replay_prompts)}
        wanted |= {one.id for one in shipped_prompts(EVAL_PROMPTS, recipe.gate_eval_prompts)}
        wanted |= {one.id for one in shipped_prompts(SAFETY_PROMPTS, recipe.gate_safety_prompts)}
    files = lab.replay.glob(f"{lab.base.digest[:8]}*.jsonl")
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return len(wanted - {json.loads(line)["id"] for line in lines})


def results(lab: Lab) -> list[dict[str, Any]]:
    return [found for arm in arms(lab.sizes) if (found := lab.result(arm)) is not None]


# --- telling --------------------------------------------------------------------------------------------------------


def report_of(lab: Lab) -> dict[str, Any]:
    done = results(lab)
    found = statistics.figures(done)
    return {
        "bench": "experiment",
        "quick": lab.quick,
        "base": lab.base.name,
        "bars": [asdict(bar) for bar in statistics.bars(found)],
        "figures": found,
        "sizes": lab.sizes.parts(),
        "arms": [{name: one[name] for name in ("world", "arm", "seed", "seconds", "code")} for one in done],
        "minutes": round(sum(one["seconds"] for one in done) / 60, 1),
        "same_code": {one["code"] for one in done} <= {code()},
        "machine": machine(),
    }


def show(report: dict[str, Any], console: Console) -> None:
    for world in ARMS:
        table = Table(
            title=f"World of {world}" + (" (quick: the figures mean nothing)" if report["quick"] else "")
        )
        what = "held-out right" if world == "facts" else "short and direct"
        for column in ("arm", what, "above base [95 %]", "general", "poison", "verdicts by seed"):
            table.add_column(column)
        for name, arm in report["figures"].get(world, {}).items():
            table.add_row(name, *cells(arm))
        console.print(table)
    for bar in report["bars"]:
        mark = {True: "[green]reached[/]", False: "[red]NOT REACHED[/]", None: "open"}[bar["reached"]]
        console.print(f"{mark}  {bar['name']}: {bar['found']} (wanted: {bar['wanted']})")
    if not report["same_code"]:
        console.print("[yellow]Some arms were made by an earlier state of the trainer's code.")


def cells(arm: dict[str, Any]) -> list[str]:
    held = (
        f"{arm['right']} of {arm['questions']}" if "right" in arm else f"{arm['liked']} of {arm['answers']}"
    )
    gain = arm["gain"]
    above = (
        "" if gain["low"] is None or "verdicts" not in arm
        else f"{statistics.points(gain['value'])} [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]"
    )  # fmt: skip
    general = arm.get("general_change")
    return [
        held,
        above,
        "" if general is None else statistics.points(general),
        str(arm.get("poison_learned", "")),
        ", ".join(arm.get("verdicts", {}).values()),
    ]


if __name__ == "__main__":
    app()
