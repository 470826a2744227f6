"""`make bench-processor`: every arm in a process of its own, one after the other on one Kafka; then one JSON line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from confluent_kafka import KafkaException
from rich.console import Console

from benchmarks.processor import end_to_end, latency, onestage, state_benchmarks
from benchmarks.processor.broker import broker
from benchmarks.processor.harness import Lab
from benchmarks.processor.kafka_client import Log, WrongResult
from benchmarks.processor.results import Found, Results, Settings
from deploy.local.errors import StackError

RESULTS = Path(__file__).parent.with_suffix(".json")
FOLDER = Path(".loopwright/bench/processor")
QUICK = {"events": 30_000, "faust_events": 3_000, "keys": 20_000, "few_keys": 2_000}
DIRTY_CORES = 0.25
app = typer.Typer(add_completion=False)
progress = Console(stderr=True, highlight=False)

Measure = Callable[[Lab, Settings], Found]
ARMS: dict[str, Measure] = {
    "raw": lambda lab, told: onestage.measure(lab, "raw", told.events),
    "engine": lambda lab, told: onestage.measure(lab, "engine", told.events),
    "quixstreams": lambda lab, told: onestage.measure(lab, "quixstreams", told.events),
    "faust": lambda lab, told: onestage.measure(lab, "faust", told.faust_events),
    "processor-350": lambda lab, told: end_to_end.measure(lab, told.events, 350),
    "processor-4k": lambda lab, told: end_to_end.measure(lab, told.events_4k, 4096),
    "keys-10k": lambda lab, told: state_benchmarks.keys(
        lab, told.few_keys, told.keys, told.events, restart=False
    ),
    "keys-1m": lambda lab, told: state_benchmarks.keys(lab, told.keys, told.keys, told.events, restart=True),
    "latency": lambda lab, told: latency.one_stage(lab, told.latency_s),
    "latency-processor": lambda lab, told: latency.as_shipped(lab, told.latency_s),
    "takeover": lambda lab, told: state_benchmarks.takeover(lab, told.takeover_s),
}


@app.command()
def main(
    arms: Annotated[str, typer.Option(help=f"Only these, with commas: {', '.join(ARMS)}.")] = "",
    events: Annotated[
        int, typer.Option(help="Of each arm but those that are named below.", min=1_000)
    ] = 1_000_000,
    faust_events: Annotated[
        int, typer.Option(help="Faust gets fewer: it is so much slower.", min=1_000)
    ] = 40_000,
    events_4k: Annotated[int, typer.Option("--events-4k", help="Records of 4 KB.", min=1_000)] = 200_000,
    partitions: Annotated[int, typer.Option(help="Of every topic; even.", min=2)] = 4,
    rounds: Annotated[int, typer.Option(help="How often each arm runs, in turn; medians count.", min=1)] = 3,
    resume: Annotated[
        bool, typer.Option(help="Go on where a run with the same settings was stopped.")
    ] = False,
    quick: Annotated[bool, typer.Option(help="Everything once and small, to see that it works.")] = False,
) -> None:
    """The stream engine and the processor beside their peers. Writes benchmarks/processor.json if all arms ran.

    Each arm checks its own output: one that lost, doubled or miscounted a record ends the run.
    """
    chosen = [name.strip() for name in arms.split(",") if name.strip()] or list(ARMS)
    if unknown := sorted(set(chosen) - ARMS.keys()):
        raise typer.BadParameter(f"no such arm: {', '.join(unknown)}; there are {', '.join(ARMS)}")
    if partitions % 2:
        raise typer.BadParameter("an even number of partitions: two processes share them in one of the arms")
    settings = Settings(
        events=QUICK["events"] if quick else events,
        faust_events=QUICK["faust_events"] if quick else faust_events,
        events_4k=QUICK["events"] // 5 if quick else events_4k,
        keys=QUICK["keys"] if quick else 1_000_000,
        few_keys=QUICK["few_keys"] if quick else 10_000,
        partitions=partitions,
        quick=quick,
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for name in [name for name in os.environ if name.startswith("LOOPWRIGHT_")]:
        del os.environ[name]
    FOLDER.mkdir(parents=True, exist_ok=True)
    results = Results(FOLDER / ("quick.json" if quick else "results.json"), settings, resume=resume)
    try:
        run(chosen, settings, 1 if quick else rounds, results)
    except (StackError, WrongResult, KafkaException) as error:
        sys.exit(f"bench-processor: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    report = results.report()
    if not quick and ARMS.keys() <= results.runs.keys():
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


def run(chosen: list[str], settings: Settings, rounds: int, results: Results) -> None:
    """Each arm in turn, as many rounds; those there already are passed over."""
    for leftover in ("kafka", "arms"):
        shutil.rmtree(FOLDER / leftover, ignore_errors=True)
    todo = [(n, arm) for n in range(1, rounds + 1) for arm in chosen if len(results.runs.get(arm, ())) < n]
    if "quixstreams" in chosen:
        onestage.quixstreams_python()
    with broker(FOLDER / "kafka") as kafka:
        log = Log(kafka.address)
        lab = Lab(kafka, log, FOLDER, settings.partitions)
        try:
            for n, arm in todo:
                with progress.status(f"round {n} of {rounds}: {arm}"):
                    try:
                        found = ARMS[arm](lab, settings)
                    except WrongResult as wrong:
                        raise WrongResult(f"{arm}: {wrong}") from wrong
                results.add(arm, found)
                progress.print(f"round {n} of {rounds}, {arm}: {_line(found)}")
        finally:
            lab.unload()
            log.close()
    shutil.rmtree(FOLDER / "kafka", ignore_errors=True)


def _line(found: Found) -> str:
    told = ", ".join(f"{name} {value:g}" for name, value in found.items())
    dirty = found.get("foreign_cores", 0.0) > DIRTY_CORES
    return f"{told}  (others took {found['foreign_cores']:g} cores: not a quiet machine)" if dirty else told


if __name__ == "__main__":
    app()
