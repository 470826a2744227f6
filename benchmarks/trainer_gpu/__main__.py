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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.trainer_gpu.bars import Bar, bars
from benchmarks.trainer_gpu.plan import ARMS, tiny_arms
from benchmarks.trainer_gpu.processes import run_arms, scratch_folder

RESULTS: Final = Path(__file__).parent.with_name("trainer_gpu.json")
app = typer.Typer(add_completion=False)


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
