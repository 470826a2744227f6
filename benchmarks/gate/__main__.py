"""Error rates and power of the gate, by simulation: `make bench-gate`, or `python -m benchmarks.gate`.

Writes `benchmarks/gate.json`, which the README and `docs/decisions/gate.md` quote. Everything is seeded, so the same
code gives the same figures. Sham candidates that are really trained (`sham_candidates`) are kept from the file.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from benchmarks.gate import rules, simulated_service
from benchmarks.gate.rates import CELLS, Json, cell_of, many_gates
from benchmarks.gate.simulated_service import Service

RESULTS: Final = Path(__file__).parent.with_name("gate.json")
SEED: Final = 20
USERS: Final = (20, 40, 80, 160)
MAX_IN_FULL: Final = 400
NO_SHAM: Final[Json] = {"model": "SmolLM2-135M-Instruct", "candidates": 0, "passed": None}
CONSTANTS: Final = (
    "JUDGEMENTS", "ACTIVITY_SIGMA", "FACTS", "POPULARITY", "CORRECTS", "OTHER_ANSWER", "LIKENESS_KNOWN",
    "LIKENESS_FLIPS",
)  # fmt: skip


def measure(
    simulations: int,
    lines: int,
    run: Callable[[Callable[[Service], Json], Sequence[Service]], list[Json]],
    cells: Sequence[Service] = CELLS,
) -> Json:
    """Return all figures.

    Args:
        simulations: Services of each cell for one gate, and, at most `MAX_IN_FULL`, candidates and chains that go
            through `decide`.
        lines: Services of each cell for thirty gates.
        run: Applies a function to each service.
        cells: The services.
    """
    one_gate = partial(cell_of, count=simulations, seed=SEED)
    single = run(one_gate, cells)
    thirty = run(partial(_thirty, count=lines), cells)
    middle = Service()
    in_full = min(simulations, MAX_IN_FULL)
    return {
        "in_full": in_full,
        "single_gate": single,
        "thirty_gates": thirty,
        "by_users": run(
            one_gate, [replace(middle, flips=f, users=users) for f in (0.1, 0.2) for users in USERS]
        ),
        "weaker_control": run(
            one_gate, [replace(middle, likes=likes, control_flips=0.5) for likes in (1 / 3, 0.1)]
        ),
        "rules": {name: rules.verdicts(candidate, in_full) for name, candidate in rules.CASES.items()},
        "chain": rules.chains(in_full),
        "summary": summary(single, thirty),
    }


def _thirty(service: Service, count: int) -> Json:
    return {**asdict(service), **many_gates(service, count, SEED)}


def summary(single: Sequence[Json], thirty: Sequence[Json]) -> Json:
    """Return the figures that README and documents quote, as shares."""
    still = [cell["fixes"]["with_control"] for cell in single if cell["flips"] == 0]
    return {
        "false_passes_worst": max(cell["no_better"]["with_control"] for cell in single),
        "false_passes_worst_without_control": max(cell["no_better"]["without_control"] for cell in single),
        "false_passes_in_thirty_gates_worst": max(cell["with_control"] for cell in thirty),
        "power_without_flips_worst": min(still) if still else None,
    }


def main(
    simulations: Annotated[
        int, typer.Option(help="Simulated services of each kind, one gate.", min=1)
    ] = 2000,
    lines: Annotated[int, typer.Option(help="Simulated services of each kind, thirty gates.", min=1)] = 1000,
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = os.cpu_count() or 1,
    quick: Annotated[bool, typer.Option("--quick", help="100 services and 40 lines of each kind.")] = False,
    output: Annotated[Path, typer.Option(help="JSON file for the results.")] = RESULTS,
) -> None:
    """Measure how often the gate passes candidates that are no better, and how often it finds better ones."""
    if quick:
        simulations, lines = 100, 40
    began = time.monotonic()
    with ProcessPoolExecutor(workers) as pool:

        def run(function: Callable[[Service], Json], services: Sequence[Service]) -> list[Json]:
            found = []
            for number, result in enumerate(pool.map(function, services), 1):
                print(f"{number} of {len(services)}: {json.dumps(result)}", flush=True)
                found.append(result)
            return found

        figures = measure(simulations, lines, run)
    result: dict[str, Any] = {
        "bench": "gate",
        "simulations": simulations,
        "lines": lines,
        "world": {name.lower(): getattr(simulated_service, name) for name in CONSTANTS},
        **figures,
        "sham_candidates": _kept(output),
        "seconds": round(time.monotonic() - began),
    }
    output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(figures["summary"], indent=1))


def _kept(output: Path) -> Json:
    """Return the figures of trained sham candidates that the file has."""
    known: Json = json.loads(output.read_text()) if output.exists() else {}
    kept: Json = known.get("sham_candidates", NO_SHAM)
    return kept


if __name__ == "__main__":
    typer.run(main)
