"""`make bench-serving`: our gateway compared with other servers on the same base, cores and prompts.

Each server is a process of its own. In each round all are started, and then measured in turn with each number of
clients while the others are idle, so that a change in the machine's speed meets all of them. The medians of the rounds
are compared. All requests are greedy and streamed. The clients run in this process, on the same cores, and cost all
servers the same. Besides tokens per second, tokens per second of the server's processor time are reported: on a machine
that is busy with other work, only these can be compared.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.machine import machine
from benchmarks.serving.load import closed_loop, percentile, requests, short_behind_long
from benchmarks.serving.servers import Server, Setup, embedded, make_adapter, transformers_serve

RESULTS = Path(__file__).parent.with_suffix(".json")
LINE = "assistant"
OURS, PEER = "embedded", "transformers"
ARMS: dict[str, Callable[[Setup], AbstractContextManager[Server]]] = {
    OURS: embedded,
    PEER: transformers_serve,
}
TOKENS, WARM_UP_S = 96, 3.0
LONG_ANSWERS, LONG_TOKENS, SHORT_ATTEMPTS = 7, 250, 12
SWAP_CLIENTS, SWAP_TOKENS = 8, 16
BARS = {
    "tokens_8_vs_transformers": 1.1,
    "tokens_32_vs_transformers": 1.1,
    "version_8_vs_base": 0.95,
    "version_32_vs_base": 0.95,
    "steps_late": 3,
    "swap_p99": 1.2,
}
"""Least ratios, and the most for the last two."""
app = typer.Typer(add_completion=False)
Figures = dict[str, float]


@app.command()
def main(
    base: Annotated[Path, typer.Option(help="Folder of the base model.")] = Path(
        ".loopwright/models/smollm2-135m-instruct"
    ),
    rounds: Annotated[int, typer.Option(help="How often each server runs.", min=1)] = 3,
    seconds: Annotated[float, typer.Option(help="Duration of each measurement, in seconds.", min=1)] = 20.0,
    clients: Annotated[str, typer.Option(help="Numbers of clients, separated by commas.")] = "1,8,32",
    arms: Annotated[str, typer.Option(help=f"Servers to run: {', '.join(ARMS)}.")] = ",".join(ARMS),
    swaps: Annotated[int, typer.Option(help="Swaps under load; 0 leaves them out.", min=0)] = 20,
    swap_requests: Annotated[int, typer.Option(help="Requests during the swaps.", min=100)] = 2000,
    write: Annotated[bool, typer.Option(help="Write benchmarks/serving.json.")] = True,
) -> None:
    """Compare the servers, print a table and a closing JSON line, and write benchmarks/serving.json."""
    counts = [int(count) for count in clients.split(",")]
    chosen = arms.split(",")
    if unknown := sorted(set(chosen) - ARMS.keys()):
        raise typer.BadParameter(f"unknown server: {', '.join(unknown)}; choose from {', '.join(ARMS)}")
    begin = time.monotonic()
    runs: dict[str, list[Figures]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-serving-") as folder:
        adapters = tuple(make_adapter(base.resolve(), Path(folder) / f"v{seed}", seed) for seed in (1, 2))
        setup = Setup(base.resolve(), adapters, len(os.sched_getaffinity(0)))
        for number in range(1, rounds + 1):
            measure_round(setup, chosen, counts, seconds, runs)
            _progress(f"round {number} of {rounds} is done")
        if swaps and OURS in chosen:
            with embedded(setup) as server:
                runs["swaps"] = [measure_swaps(server, swaps, swap_requests)]
    report = {
        "bench": "serving",
        "ratios": ratios(runs, counts),
        "bars": BARS,
        "figures": {arm: medians(samples) for arm, samples in runs.items()},
        "settings": {
            "base": base.name, "rounds": rounds, "seconds": seconds, "tokens": TOKENS, "threads": setup.threads
        },
        "minutes": round((time.monotonic() - begin) / 60, 1),
        "machine": machine(),
    }  # fmt: skip
    if write:
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


def measure_round(
    setup: Setup, chosen: list[str], counts: list[int], seconds: float, runs: dict[str, list[Figures]]
) -> None:
    """Start all servers and measure each of their models with each number of clients, in turn."""
    with ExitStack() as stack:
        targets: dict[str, tuple[Server, str]] = {}
        for arm in chosen:
            server = stack.enter_context(ARMS[arm](setup))
            if server.serve is not None:
                server.serve(1)
            targets |= {
                name: (server, model)
                for name, model in zip((arm, f"{arm}-version"), server.models[:2], strict=False)
            }
        figures: dict[str, Figures] = {name: {} for name in targets}
        for count in counts:
            for name, (server, model) in targets.items():
                measure(server, model, count, seconds, figures[name])
                _progress(f"  {name}, {count} clients: {_line(figures[name], f'_{count}')}")
        for name, (server, model) in targets.items():
            late = asyncio.run(
                short_behind_long(server.url, model, LONG_ANSWERS, LONG_TOKENS, SHORT_ATTEMPTS)
            )
            figures[name]["steps_late"] = float(max(late))
            figures[name]["steps_late_median"] = statistics.median(late)
            _progress(f"  {name}, short requests behind {LONG_ANSWERS} long ones: {late} steps late")
            runs.setdefault(name, []).append(figures[name])


def measure(server: Server, model: str, count: int, seconds: float, figures: Figures) -> None:
    """Measure one model with a number of clients."""
    sample = asyncio.run(closed_loop(server.url, model, count, TOKENS, WARM_UP_S, seconds, server.cpu_s))
    figures[f"tokens_per_s_{count}"] = sample.tokens_per_s
    figures[f"tokens_per_cpu_s_{count}"] = sample.tokens_per_cpu_s
    figures[f"first_token_s_{count}"] = sample.first_token_s


def measure_swaps(server: Server, swaps: int, count: int) -> Figures:
    """Measure requests for the line, without swaps and then with swaps between two versions."""
    assert server.serve is not None
    serve = server.serve
    serve(1)

    async def quiet() -> Any:
        return await requests(server.url, LINE, SWAP_CLIENTS, count, SWAP_TOKENS)

    async def swapped() -> Any:
        load = asyncio.create_task(requests(server.url, LINE, SWAP_CLIENTS, count, SWAP_TOKENS))
        pause = quiet_s / (swaps + 1)
        for number in range(swaps):
            await asyncio.sleep(pause / 2 if number else pause)
            took.append((await asyncio.to_thread(serve, 1 + (number + 1) % 2))["seconds"])
        return await load

    took: list[float] = []
    begin = time.perf_counter()
    calm, calm_errors = asyncio.run(quiet())
    quiet_s = time.perf_counter() - begin
    chats, errors = asyncio.run(swapped())
    p99 = percentile([chat.seconds for chat in chats], 0.99)
    calm_p99 = percentile([chat.seconds for chat in calm], 0.99)
    return {
        "requests": float(len(chats) + len(errors)),
        "failed": float(len(errors) + len(calm_errors)),
        "versions": float(len({chat.model for chat in chats})),
        "swap_s": statistics.median(took),
        "p99_s": p99,
        "quiet_p99_s": calm_p99,
        "swap_p99": p99 / calm_p99,
    }


def ratios(runs: dict[str, list[Figures]], counts: list[int]) -> dict[str, float]:
    """Return the ratios that the bars are about, of tokens per second of processor time."""
    result: dict[str, float] = {}
    version, base, peer = (medians(runs.get(name, [])) for name in (f"{OURS}-version", OURS, PEER))
    for count in counts:
        figure = f"tokens_per_cpu_s_{count}"
        if version and peer:
            result[f"tokens_{count}_vs_transformers"] = round(version[figure] / peer[figure], 2)
        if version and base:
            result[f"version_{count}_vs_base"] = round(version[figure] / base[figure], 2)
    if version:
        result["steps_late"] = max(run["steps_late"] for run in runs[f"{OURS}-version"])
    if "swaps" in runs:
        result["swap_p99"] = round(runs["swaps"][0]["swap_p99"], 2)
    return result


def medians(runs: list[Figures]) -> Figures:
    """Return the median of each figure over the rounds."""
    return {
        name: round(statistics.median(run[name] for run in runs), 3) for name in (runs[0] if runs else ())
    }


def _line(figures: Figures, ending: str) -> str:
    return ", ".join(
        f"{name.removesuffix(ending)} {value:.2f}" for name, value in figures.items() if name.endswith(ending)
    )


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    app()
