"""Sends candidates that learned nothing through the gate of a finished arm.

See `benchmarks/gate/null_adapters.py` for the candidates. None of them should pass.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers import logging as transformers_logging

from benchmarks.gate.null_adapters import SCALE, SEEDS, gate_null_adapters
from benchmarks.trainer_run import PREPARED, RUN_ID
from deploy.local.model import REPLAY_FOLDER
from services.trainer.files import write_whole
from services.trainer.progress import Progress
from services.trainer.run.context import RunContext
from services.trainer.run.folder import CONFIG
from services.trainer.run.run_table import RunConfig
from services.trainer.settings import TrainerSettings
from shared.adapters.in_memory import InMemoryCache
from shared.versions import GateReport

FIGURES = ("win_rate", "general_accuracy_change", "general_kl")


def main(
    arm: Annotated[
        Path,
        typer.Argument(help="Folder of an arm that trained: .loopwright/experiment/.../facts-corrections-1"),
    ],
    scale: Annotated[float, typer.Argument(help="Size of the random weights.")] = SCALE,
) -> None:
    """Gate five adapters with random weights on the arm's held-out feedback, and write nulls.json to its folder."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    run = next(arm.glob(f"data/trainer/*/runs/{RUN_ID}"), None)
    if run is None:
        raise typer.BadParameter(f"{arm} has no run: give the folder of an arm that trained")
    config = RunConfig.from_json((run / CONFIG).read_text(encoding="utf-8"))
    settings = TrainerSettings(line=config.line, data_dir=arm / "data", replay=PREPARED / REPLAY_FOLDER)
    progress = Progress(InMemoryCache(), config.line, "nulls")
    context = RunContext(run, config, settings, progress, threading.Event())
    folder = Path(tempfile.mkdtemp(dir=arm))
    try:
        reports = gate_null_adapters(context, folder, scale=scale)
    finally:
        shutil.rmtree(folder)
    results = {str(seed): summarise(report) for seed, report in zip(SEEDS, reports, strict=True)}
    write_whole(arm / "nulls.json", json.dumps(results, indent=1).encode())
    print(json.dumps(results))


def summarise(report: GateReport) -> dict[str, Any]:
    """Return verdict, reasons and the figures that show how far the candidate moved."""
    figures = {figure.name: figure for figure in report.figures}
    return {
        "verdict": report.verdict,
        "reasons": list(report.reasons),
        **{
            name: figures[name].model_dump(include={"n", "value", "low", "high"})
            for name in FIGURES
            if name in figures
        },
    }


if __name__ == "__main__":
    typer.run(main)
