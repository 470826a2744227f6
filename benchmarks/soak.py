"""Whether the processor as shipped grows: `make bench-soak`. Ends in one JSON line, kept in benchmarks/soak.json.

Responses and corrections come at 500 a second, of a fixed number of responses and users: each response is sent again
and again, each user corrects it once more each time. So after the first quarter of an hour, in which caches fill and
the allocator finds its size, nothing is new but the events, and memory should stay. Told is the memory of the process
(RSS) at the beginning and at the end, and the slope of a line through all of it (least squares). With `--growing` each
response is a new one: then memory grows until the stores' cache is full, and after that by their indexes and filters,
some 3 bytes a key.
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
from benchmarks.processor.broker import broker
from benchmarks.processor.harness import Lab, Running
from benchmarks.processor.kafka_client import Log, Sent, WrongResult
from benchmarks.processor.latency import LAG_S, RATE, paced
from shared.topics import CHAT_RESPONSES, DEAD_LETTERS, FEEDBACK_EVENTS, FEEDBACK_OUTCOMES

RESULTS = Path(__file__).with_suffix(".json")
FOLDER = Path(".loopwright/bench/soak")
USERS = 5_000
KNOWN = 40_000
"""Responses; each comes again every 160 seconds."""
LOOK_S = 5.0
WARM_MINUTES = 15.0
app = typer.Typer(add_completion=False)
progress = Console(stderr=True, highlight=False)


@app.command()
def main(
    minutes: Annotated[float, typer.Option(help="How long memory is watched.", min=0.5)] = 15.0,
    warm_up: Annotated[float, typer.Option(help="Minutes before that.", min=0.0)] = WARM_MINUTES,
    growing: Annotated[bool, typer.Option(help="Each response is a new one.")] = False,
    partitions: Annotated[int, typer.Option(help="Of every topic.", min=1)] = 4,
) -> None:
    """Measures, and writes benchmarks/soak.json where it ran for 15 minutes or more, and not `--growing`."""
    pairs = round(RATE * (warm_up + minutes) * 60 / 2)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with broker(FOLDER / "kafka") as kafka:
        log = Log(kafka.address)
        try:
            sizes = soaked(Lab(kafka, log, FOLDER, partitions), pairs, None if growing else KNOWN)[
                round(warm_up * 60 / LOOK_S) :
            ]
        except WrongResult as wrong:
            sys.exit(f"bench-soak: {wrong}")
        finally:
            log.close()
    report = {
        "bench": "soak",
        "ratios": ratios(sizes),
        "figures": figures(sizes, pairs),
        "machine": machine(),
    }
    if minutes >= 15 and not growing:
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


def soaked(lab: Lab, pairs: int, known: int | None) -> list[float]:
    """RSS in MB every five seconds, while records came. Raises `WrongResult` unless each correction has an outcome."""
    talk = end_to_end.Conversation(pairs, 350, users=USERS, known=known)

    def records() -> Iterator[tuple[str, Sent]]:
        for form, i in end_to_end.forms(pairs, RATE, LAG_S):
            if form == "response":
                yield CHAT_RESPONSES.name, talk.response(i)
            else:
                yield FEEDBACK_EVENTS.name, talk.correction(i)

    with end_to_end.own_topics(lab), end_to_end.processor(lab, "soak") as running:
        sizes, done = list[float](), threading.Event()
        watch = threading.Thread(target=_watch, args=(running, sizes, done), daemon=True)
        watch.start()
        try:
            paced(lab.log, records(), RATE)
        finally:
            done.set()
            watch.join()
        running.until_written(lab.log, FEEDBACK_OUTCOMES.name, pairs, end_to_end.QUIET_S)
        outcomes = sum(1 for _ in lab.log.read(FEEDBACK_OUTCOMES.name))
        dead = sum(lab.log.ends(DEAD_LETTERS.name).values())
    if outcomes != pairs or dead:
        raise WrongResult(f"{pairs} corrections have {outcomes} outcomes and {dead} dead letters")
    return sizes


def _watch(running: Running, sizes: list[float], done: threading.Event) -> None:
    while not done.wait(LOOK_S):
        running.look()
        sizes.append(running.rss / 2**20)
        progress.print(f"{len(sizes) * LOOK_S:5.0f} s  {sizes[-1]:6.1f} MB")


def ratios(sizes: list[float]) -> dict[str, float]:
    """`end_vs_early`: the last tenth against the first."""
    part = max(1, len(sizes) // 10)
    return {"end_vs_early": round(statistics.median(sizes[-part:]) / statistics.median(sizes[:part]), 3)}


def figures(sizes: list[float], pairs: int) -> dict[str, float]:
    hours = [n * LOOK_S / 3600 for n in range(len(sizes))]
    slope = statistics.linear_regression(hours, sizes).slope if len(sizes) > 1 else 0.0
    return {
        "minutes": round(len(sizes) * LOOK_S / 60, 1),
        "records": 2 * pairs,
        "rss_mb_early": round(sizes[0], 1),
        "rss_mb_end": round(sizes[-1], 1),
        "rss_mb_peak": round(max(sizes), 1),
        "slope_mb_per_hour": round(slope, 1),
    }


if __name__ == "__main__":
    app()
