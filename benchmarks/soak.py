"""`make bench-soak`: whether the memory of the processor grows. Prints one JSON line, kept in benchmarks/soak.json.

Responses and corrections arrive at 500 per second, for a fixed number of responses and users: each response is sent
again and again, and its user corrects it once more each time. After the first quarter of an hour, in which the caches
fill and the allocator reaches its size, only the events are new, so memory should not grow. The report has the resident
memory (RSS) at the beginning and at the end, and the slope of a least-squares line through all samples.

With `--growing` each response is new. Memory then grows until the stores' cache is full, and after that only by the
indexes and filters of the stores, about 3 bytes per key.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.machine import machine
from benchmarks.processor import end_to_end
from benchmarks.processor.broker import running_broker
from benchmarks.processor.harness import BenchmarkRun, MeasuredProcess
from benchmarks.processor.kafka_client import KafkaClient, OutgoingRecord, WrongResult
from benchmarks.processor.latency import FEEDBACK_DELAY_S, RATE, send_at_rate
from shared.topics import CHAT_RESPONSES, DEAD_LETTERS, FEEDBACK_EVENTS, FEEDBACK_OUTCOMES

RESULTS = Path(__file__).with_suffix(".json")
FOLDER = Path(".loopwright/bench/soak")
USERS = 5_000
RESPONSES = 40_000
"""Number of responses; each is repeated every 160 seconds."""
SAMPLE_INTERVAL_S = 5.0
WARM_UP_MINUTES = 15.0
app = typer.Typer(add_completion=False)
progress = Console(stderr=True, highlight=False)


@app.command()
def main(
    minutes: Annotated[float, typer.Option(help="Minutes of measurement.", min=0.5)] = 15.0,
    warm_up: Annotated[
        float, typer.Option(help="Minutes before the measurement.", min=0.0)
    ] = WARM_UP_MINUTES,
    growing: Annotated[bool, typer.Option(help="Make each response a new one.")] = False,
    partitions: Annotated[int, typer.Option(help="Partitions of every topic.", min=1)] = 4,
) -> None:
    """Measure memory. Writes benchmarks/soak.json after 15 minutes or more without `--growing`."""
    pairs = round(RATE * (warm_up + minutes) * 60 / 2)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with running_broker(FOLDER / "kafka") as kafka:
        client = KafkaClient(kafka.address)
        try:
            sizes = measure_memory(
                BenchmarkRun(kafka, client, FOLDER, partitions), pairs, None if growing else RESPONSES
            )[round(warm_up * 60 / SAMPLE_INTERVAL_S) :]
        except WrongResult as wrong:
            sys.exit(f"bench-soak: {wrong}")
        finally:
            client.close()
    report = {
        "bench": "soak",
        "ratios": ratios(sizes),
        "figures": figures(sizes, pairs),
        "machine": machine(),
    }
    if minutes >= 15 and not growing:
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


def measure_memory(bench: BenchmarkRun, pairs: int, response_count: int | None) -> list[float]:
    """Return the RSS in MB every five seconds. Raises `WrongResult` unless each correction has an outcome."""
    workload = end_to_end.FeedbackWorkload(pairs, 350, users=USERS, response_count=response_count)

    def records() -> Iterator[tuple[str, OutgoingRecord]]:
        for kind, i in end_to_end.interleaved(pairs, RATE, FEEDBACK_DELAY_S):
            if kind == "response":
                yield CHAT_RESPONSES.name, workload.response(i)
            else:
                yield FEEDBACK_EVENTS.name, workload.correction(i)

    with end_to_end.processor_topics(bench), end_to_end.running_processor(bench, "soak") as running:
        sizes, done = list[float](), threading.Event()
        sampler = threading.Thread(target=_sample, args=(running, sizes, done), daemon=True)
        sampler.start()
        try:
            send_at_rate(bench.kafka, records(), RATE)
        finally:
            done.set()
            sampler.join()
        running.wait_until_written(bench.kafka, FEEDBACK_OUTCOMES.name, pairs, end_to_end.SETTLE_S)
        outcomes = sum(1 for _ in bench.kafka.read(FEEDBACK_OUTCOMES.name))
        dead = sum(bench.kafka.ends(DEAD_LETTERS.name).values())
    if outcomes != pairs or dead:
        raise WrongResult(f"{pairs} corrections have {outcomes} outcomes and {dead} dead letters")
    return sizes


def _sample(running: MeasuredProcess, sizes: list[float], done: threading.Event) -> None:
    while not done.wait(SAMPLE_INTERVAL_S):
        running.sample()
        sizes.append(running.rss / 2**20)
        progress.print(f"{len(sizes) * SAMPLE_INTERVAL_S:5.0f} s  {sizes[-1]:6.1f} MB")


def ratios(sizes: list[float]) -> dict[str, float]:
    """Return `end_vs_early`: the median of the last tenth of the samples relative to that of the first."""
    part = max(1, len(sizes) // 10)
    return {"end_vs_early": round(statistics.median(sizes[-part:]) / statistics.median(sizes[:part]), 3)}


def figures(sizes: list[float], pairs: int) -> dict[str, float]:
    """Return duration, records, and the memory in MB."""
    hours = [n * SAMPLE_INTERVAL_S / 3600 for n in range(len(sizes))]
    slope = statistics.linear_regression(hours, sizes).slope if len(sizes) > 1 else 0.0
    return {
        "minutes": round(len(sizes) * SAMPLE_INTERVAL_S / 60, 1),
        "records": 2 * pairs,
        "rss_mb_early": round(sizes[0], 1),
        "rss_mb_end": round(sizes[-1], 1),
        "rss_mb_peak": round(max(sizes), 1),
        "slope_mb_per_hour": round(slope, 1),
    }


if __name__ == "__main__":
    app()
