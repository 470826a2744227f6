"""`make bench-processor`: runs each arm in its own process, one by one on one Kafka, and prints one JSON line."""

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

from benchmarks.processor import end_to_end, latency, one_stage, state_benchmarks
from benchmarks.processor.broker import running_broker
from benchmarks.processor.harness import BenchmarkRun
from benchmarks.processor.kafka_client import KafkaClient, WrongResult
from benchmarks.processor.results import Figures, Results, Settings
from deploy.local.errors import StackError

RESULTS = Path(__file__).parent.with_suffix(".json")
FOLDER = Path(".loopwright/bench/processor")
QUICK = {"events": 30_000, "faust_events": 3_000, "keys": 20_000, "few_keys": 2_000}
FOREIGN_CORES_LIMIT = 0.25
"""Results with more CPU use by other processes are marked as unreliable."""
app = typer.Typer(add_completion=False)
progress = Console(stderr=True, highlight=False)

Measure = Callable[[BenchmarkRun, Settings], Figures]
ARMS: dict[str, Measure] = {
    "raw": lambda bench, settings: one_stage.measure(bench, "raw", settings.events),
    "engine": lambda bench, settings: one_stage.measure(bench, "engine", settings.events),
    "quixstreams": lambda bench, settings: one_stage.measure(bench, "quixstreams", settings.events),
    "faust": lambda bench, settings: one_stage.measure(bench, "faust", settings.faust_events),
    "processor-350": lambda bench, settings: end_to_end.measure(bench, settings.events, 350),
    "processor-4k": lambda bench, settings: end_to_end.measure(bench, settings.events_4k, 4096),
    "keys-10k": lambda bench, settings: state_benchmarks.measure_keys(
        bench, settings.few_keys, settings.keys, settings.events, restart=False
    ),
    "keys-1m": lambda bench, settings: state_benchmarks.measure_keys(
        bench, settings.keys, settings.keys, settings.events, restart=True
    ),
    "partitions-6": lambda bench, settings: one_stage.measure(
        bench.with_partitions(6), "engine", settings.events
    ),
    "partitions-24": lambda bench, settings: one_stage.measure(
        bench.with_partitions(24), "engine", settings.events
    ),
    "process-1": lambda bench, settings: one_stage.measure_processes(bench, 1, settings.events),
    "processes-2": lambda bench, settings: one_stage.measure_processes(bench, 2, settings.events),
    "latency": lambda bench, settings: latency.measure_one_stage(bench, settings.latency_s),
    "latency-processor": lambda bench, settings: latency.measure_processor(bench, settings.latency_s),
    "takeover": lambda bench, settings: state_benchmarks.measure_takeover(bench, settings.takeover_s),
}


@app.command()
def main(
    arms: Annotated[
        str, typer.Option(help=f"Arms to run, separated by commas: {', '.join(ARMS)}. Default: all.")
    ] = "",
    events: Annotated[
        int, typer.Option(help="Events of each arm, except those named below.", min=1_000)
    ] = 1_000_000,
    faust_events: Annotated[
        int, typer.Option(help="Events of the Faust arm, which is much slower.", min=1_000)
    ] = 40_000,
    events_4k: Annotated[
        int, typer.Option("--events-4k", help="Events of the arm with 4 KB records.", min=1_000)
    ] = 200_000,
    partitions: Annotated[int, typer.Option(help="Partitions of every topic; an even number.", min=2)] = 4,
    rounds: Annotated[int, typer.Option(help="Rounds of all arms; the report has medians.", min=1)] = 3,
    resume: Annotated[bool, typer.Option(help="Continue an interrupted run with the same settings.")] = False,
    quick: Annotated[
        bool, typer.Option(help="Run every arm once with few events, to check that it works.")
    ] = False,
) -> None:
    """Compare the stream engine and the processor with their peers.

    Writes benchmarks/processor.json if every arm ran. Each arm checks its own output; a lost, duplicated or miscounted
    record ends the run.
    """
    chosen = [name.strip() for name in arms.split(",") if name.strip()] or list(ARMS)
    if unknown := sorted(set(chosen) - ARMS.keys()):
        raise typer.BadParameter(f"unknown arm: {', '.join(unknown)}; choose from {', '.join(ARMS)}")
    if partitions % 2:
        raise typer.BadParameter(
            "the number of partitions must be even, because one arm divides them between two processes"
        )
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
    """Run the arms in turn, for the given number of rounds, without the results that exist already."""
    for leftover in ("kafka", "arms"):
        shutil.rmtree(FOLDER / leftover, ignore_errors=True)
    todo = [(n, arm) for n in range(1, rounds + 1) for arm in chosen if len(results.runs.get(arm, ())) < n]
    if "quixstreams" in chosen:
        one_stage.quixstreams_python()
    with running_broker(FOLDER / "kafka") as kafka:
        client = KafkaClient(kafka.address)
        bench = BenchmarkRun(kafka, client, FOLDER, settings.partitions)
        try:
            for n, arm in todo:
                with progress.status(f"round {n} of {rounds}: {arm}"):
                    try:
                        figures = ARMS[arm](bench, settings)
                    except WrongResult as wrong:
                        raise WrongResult(f"{arm}: {wrong}") from wrong
                results.add(arm, figures)
                progress.print(f"round {n} of {rounds}, {arm}: {_line(figures)}")
        finally:
            bench.unload()
            client.close()
    shutil.rmtree(FOLDER / "kafka", ignore_errors=True)


def _line(figures: Figures) -> str:
    text = ", ".join(f"{name} {value:g}" for name, value in figures.items())
    if figures.get("foreign_cores", 0.0) <= FOREIGN_CORES_LIMIT:
        return text
    return f"{text}  (unreliable: other processes used {figures['foreign_cores']:g} cores)"


if __name__ == "__main__":
    app()
