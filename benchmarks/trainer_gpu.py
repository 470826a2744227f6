"""`python -m benchmarks.trainer_gpu`: the trainer on one GPU, compared with TRL, in under eight minutes.

Bases of 1.7 and 7.2 billion weights are made on the card with random weights, so nothing is downloaded. Each arm trains
the same rows in a process of its own; one that crashes or runs out of time is reported, and the others go on.

| arm | what it does |
| --- | --- |
| `check` | two steps in bfloat16, packed, against two steps in fp32 with each row by itself: losses and gradients |
| `ours` | what a run does: rows, resolved recipe, steps, `fine_tune` |
| `trl` | TRL's default configurations and a `LoraConfig` of the same rank |
| `trl-tuned` | bf16 weights, no gradient checkpointing, Liger's kernels, large batches, flash attention if installed |
| `small-train`, `small-gate` | the same within 24 GB with 4-bit weights, then the gate's answers and likelihoods |

Tokens are those of the rows, without padding; of a preference, those of both answers with their prompts. Utilisation is
four operations per weight and token (LoRA has no weight gradients), relative to the card's dense bf16 peak.

Needs torch, transformers, accelerate, peft, trl, datasets, liger-kernel and bitsandbytes, and what the trainer imports:
pydantic-settings, structlog, tensorboardX, typer, rich. The bars are those of an H100 or H200; on other cards there are
figures only. `--device cpu --tiny` runs the same code with tiny bases.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from services.trainer.worker.launcher import TUNING

RESULTS: Final = Path(__file__).with_name("trainer_gpu.json")
PREFIX: Final = "RESULT "
"""Begins the line of each result in the output of an arm's process."""
VOCABULARY: Final = 49_152
START_S: Final = 25.0
"""Least time that is left for an arm to be started."""
app = typer.Typer(add_completion=False)


# --- what is measured -------------------------------------------------------------------------------------------


class Shape(NamedTuple):
    """Dimensions of a base."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int = VOCABULARY


SHAPES: Final = {
    "7b": Shape(4096, 14336, 32, 32, 8),
    "1b7": Shape(2048, 8192, 24, 32, 32),
    "check": Shape(256, 512, 2, 4, 2, 1024),
    "tiny": Shape(64, 96, 2, 4, 2, 512),
}


class Workload(NamedTuple):
    """Rows of a data set, each with as many tokens in its prompt and in each answer."""

    prompt: int
    answer: int
    rows: int
    kinds: tuple[Literal["sft", "kto", "dpo"], ...]
    """Objectives of the rows, in turn."""
    batch: int
    """Rows per step with TRL's tuned settings."""


WORKLOADS: Final = {
    "short": Workload(60, 60, 4000, ("sft",), 64),
    "long": Workload(700, 300, 1000, ("sft",), 8),
    "kto": Workload(60, 60, 2000, ("kto",), 32),
    "dpo": Workload(60, 60, 2000, ("dpo",), 16),
    "mixed": Workload(60, 60, 4000, ("sft", "sft", "kto", "dpo"), 0),
}


class Arm(NamedTuple):
    """A process: an arm on a base, its data sets in order, and the time that it should take."""

    name: str
    base: str
    workloads: tuple[str, ...]
    seconds: float

    @property
    def label(self) -> str:
        """Return how the arm is named on the command line and in results."""
        return f"{self.name}/{self.base}"


ARMS: Final = (
    Arm("check", "check", ("check",), 30),
    Arm("ours", "7b", ("short", "long", "kto", "dpo", "mixed"), 105),
    Arm("trl-tuned", "7b", ("short", "kto", "dpo", "long"), 85),
    Arm("small-train", "7b", ("short",), 70),
    Arm("small-gate", "7b", ("gate",), 40),
    Arm("trl", "7b", ("kto", "dpo", "short"), 60),
    Arm("ours", "1b7", ("short",), 40),
    Arm("trl-tuned", "1b7", ("short",), 40),
)
"""In the order of their importance, with the seconds that each should take.

What does not fit into the time is left out, and reported.
"""


class Bar(NamedTuple):
    """A claim about the figures."""

    text: str
    met: bool
    found: str


def bars(results: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[Bar]:
    """Return the bars for an H100 or H200.

    Args:
        results: Figures by (label of the arm, data set). A missing one, or one with an `error`, misses its bars.

    """

    def speed(arm: str, workload: str) -> float:
        return float(results.get((f"{arm}/7b", workload), {}).get("tokens_per_s", 0.0))

    def at_least(workload: str, least: float) -> Bar:
        found = speed("ours", workload)
        return Bar(f"{workload} rows: at least {least:,.0f} tokens/s", found >= least, f"{found:,.0f}")

    def ratio(workload: str, arms: Sequence[str], least: float, peer: str) -> Bar:
        ours, others = speed("ours", workload), [speed(arm, workload) for arm in arms]
        found = ours / max(others) if max(others) else 0.0
        return Bar(f"{workload} rows: at least {least} x {peer}", found >= least, f"{found:.2f}")

    def done(arm: str, workload: str, text: str) -> Bar:
        result = results.get((arm, workload), {"error": "no result"})
        return Bar(text, "error" not in result, str(result.get("error", "yes")))

    check = results.get(("check/check", "check"), {"passed": False, "error": "no result"})
    return [
        at_least("short", 12_000),
        ratio("short", ("trl-tuned",), 1.4, "TRL tuned"),
        at_least("long", 12_500),
        ratio("kto", ("trl", "trl-tuned"), 1.3, "TRL's best"),
        ratio("dpo", ("trl", "trl-tuned"), 1.3, "TRL's best"),
        done("small-train/7b", "short", "trains within 24 GB"),
        done("small-gate/7b", "gate", "is gated within 24 GB"),
        Bar("bf16 equals fp32", bool(check.get("passed")), str(check.get("error", check.get("passed")))),
    ]


# --- the command ------------------------------------------------------------------------------------------------


@app.command()
def main(
    minutes: Annotated[float, typer.Option(help="Time for all arms.")] = 8.0,
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    tiny: Annotated[bool, typer.Option(help="Use tiny bases and few rows.")] = False,
    only: Annotated[str, typer.Option(help="Arms to run, such as check,ours/7b. Default: all.")] = "",
    write: Annotated[bool, typer.Option(help="Write benchmarks/trainer_gpu.json.")] = False,
) -> None:
    """Run all arms, print a table and a line of JSON. The exit code is 0 if all bars are met, or none applies."""
    arms = tiny_arms() if tiny else ARMS
    wanted = [name.strip() for name in only.split(",") if name.strip()]
    chosen_arms = [one for one in arms if not wanted or one.label in wanted or one.name in wanted]
    with scratch_folder() as scratch:
        results = run_arms(chosen_arms, 60 * minutes, device, tiny=tiny, folder=scratch)
    card = next((str(one["card"]) for one in results.values() if "card" in one), device)
    judged = bars(results) if any(name in card for name in ("H100", "H200")) and not tiny else []
    print_tables(results, judged, card)
    report = {
        "bench": "trainer_gpu",
        "card": card,
        "bars": [bar._asdict() for bar in judged],
        "figures": {f"{label}/{workload}": figures for (label, workload), figures in results.items()},
    }
    if write:
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))
    raise typer.Exit(0 if all(bar.met for bar in judged) else 1)


def tiny_arms() -> list[Arm]:
    """Return one arm of each kind, on the tiny base."""
    seen: dict[str, Arm] = {}
    for one in ARMS:
        seen.setdefault(one.name, one._replace(base="check" if one.name == "check" else "tiny"))
    return list(seen.values())


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for the base of the arm `small`, in memory where that has enough space."""
    memory = Path("/dev/shm")
    enough = memory.is_dir() and shutil.disk_usage(memory).free > 20 * 2**30
    return tempfile.TemporaryDirectory(dir=memory if enough else None)


def run_arms(
    arms: Sequence[Arm], total_s: float, device: str, *, tiny: bool, folder: str
) -> dict[tuple[str, str], dict[str, Any]]:
    """Run the arms in turn, each in a process, and return what they and their failures report."""
    deadline = time.monotonic() + total_s
    results: dict[tuple[str, str], dict[str, Any]] = {}
    environment = TUNING | os.environ | {"HF_HUB_OFFLINE": "1"}
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    for number, arm in enumerate(arms):
        left = deadline - time.monotonic()
        for workload in arm.workloads:
            results[arm.label, workload] = {"error": "skipped: no time was left"}
        if left < (1 if tiny else START_S):
            continue
        print(f"{arm.label}: {left:.0f} s left", file=sys.stderr, flush=True)
        log = Path(folder) / f"{number}.log"
        command = [sys.executable, "-m", "benchmarks.trainer_gpu_arm", arm.label, folder]
        command += ["--until", str(time.time() + min(arm.seconds, left)), *(["--tiny"] if tiny else [])]
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
            try:
                status = f"the process ended with status {process.wait(left if tiny else min(left, 1.5 * arm.seconds))}"
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                status = "the process did not end in time"
        found, text = read_results(log.read_text(errors="replace"))
        for workload in arm.workloads:
            results[arm.label, workload] = found.get(workload, {"error": f"{status}: {text}"})
    return results


def read_results(output: str) -> tuple[dict[str, dict[str, Any]], str]:
    """Return the results in an arm's output by data set, and its last line that is none."""
    lines = [line for line in output.splitlines() if line.strip()]
    found = [json.loads(line.removeprefix(PREFIX)) for line in lines if line.startswith(PREFIX)]
    others = [line for line in lines if not line.startswith(PREFIX)]
    return {one.pop("workload"): one for one in found}, others[-1][-300:] if others else ""


def print_tables(
    results: Mapping[tuple[str, str], Mapping[str, Any]], judged: Sequence[Bar], card: str
) -> None:
    """Print the figures and the bars."""
    console = Console(stderr=True, width=120)
    table = Table("arm", "rows", "tokens/s", "utilisation", "busy", "peak GB", "notes", title=card)
    for (label, workload), one in results.items():
        notes = one.get("error") or one.get("notes", "")
        speed = f"{one['tokens_per_s']:,.0f}" if "tokens_per_s" in one else ""
        share, busy = one.get("utilisation"), one.get("busy")
        table.add_row(
            label,
            workload,
            speed,
            f"{share:.0%}" if share else "",
            f"{busy:.0f} %" if busy is not None else "",
            f"{one['peak_gb']:.1f}" if "peak_gb" in one else "",
            str(notes)[:60],
        )
    console.print(table)
    if judged:
        claims = Table("bar", "found", "met")
        for bar in judged:
            claims.add_row(bar.text, bar.found, "yes" if bar.met else "NO")
        console.print(claims)


if __name__ == "__main__":
    app()
