"""Candidates that learned nothing, through the gate of a finished arm: `python -m benchmarks.experiment.nulls ARM
[SCALE]`.

ARM is an arm's folder. Each of five candidates is an adapter of random weights, SCALE being how large they are
(`benchmarks/gate/null_adapters.py`), on the real base, judged by the arm's held-out feedback. Writes `nulls.json` into
the folder, and prints it. None should pass.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from transformers import logging as transformers_logging

from benchmarks.experiment.run import PREPARED, RUN_ID
from benchmarks.gate.null_adapters import SCALE, SEEDS, gate_null_adapters
from deploy.local.model import REPLAY
from services.trainer.files import write_whole
from services.trainer.progress import Progress
from services.trainer.run.context import RunContext
from services.trainer.run.folder import CONFIG
from services.trainer.run.run_table import RunConfig
from services.trainer.settings import TrainerSettings
from shared.adapters.in_memory import InMemoryCache
from shared.versions import GateReport

SHOWN = ("win_rate", "general_accuracy_change", "general_kl")


def main(arm: Path, scale: float = SCALE) -> None:
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    run = next(arm.glob(f"data/trainer/*/runs/{RUN_ID}"), None)
    if run is None:
        sys.exit(
            f"{arm} is no folder of an arm that trained: .loopwright/experiment/.../facts-corrections-1, say"
        )
    config = RunConfig.from_json((run / CONFIG).read_text(encoding="utf-8"))
    settings = TrainerSettings(line=config.line, data_dir=arm / "data", replay=PREPARED / REPLAY)
    work = RunContext(
        run, config, settings, Progress(InMemoryCache(), config.line, "nulls"), threading.Event()
    )
    folder = Path(tempfile.mkdtemp(dir=arm))
    try:
        reports = gate_null_adapters(work, folder, scale=scale)
    finally:
        shutil.rmtree(folder)
    told = {str(seed): of(report) for seed, report in zip(SEEDS, reports, strict=True)}
    write_whole(arm / "nulls.json", json.dumps(told, indent=1).encode())
    print(json.dumps(told))


def of(report: GateReport) -> dict[str, Any]:
    figures = {one.name: one for one in report.figures}
    return {
        "verdict": report.verdict,
        "reasons": list(report.reasons),
        **{
            name: figures[name].model_dump(include={"n", "value", "low", "high"})
            for name in SHOWN
            if name in figures
        },
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(float, sys.argv[2:3]))
