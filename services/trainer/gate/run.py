"""One gate: both versions are heard, the verdict is made, and what was said is written down for people."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from services.trainer.core.recipe import SHORTER_MARGIN
from services.trainer.files import write_whole
from services.trainer.gate.evaluation import Asked, Heard, measured
from services.trainer.gate.report_html import page
from services.trainer.gate.report_json import items_told, told
from services.trainer.gate.verdict import decide
from services.trainer.run.folder import GATE_ANSWERS, GATE_REPORT, GATE_REPORT_PAGE
from shared.versions import GateReport


@dataclass(frozen=True, slots=True)
class Against:
    """What a candidate is of, and what it is compared with."""

    line: str
    run_id: str
    stable: str
    least_items: int
    shorter: float = SHORTER_MARGIN


def gate(asked: Asked, heard: Callable[[], Heard], against: Against, folder: Path) -> GateReport:
    """`heard` asks. What was said lies in `folder` in files of its own, apart from the report: it is users' text."""
    began = time.monotonic()
    voices = heard()
    report = decide(
        measured(asked, voices),
        against.stable,
        against.least_items,
        time.monotonic() - began,
        shorter=against.shorter,
    )
    rows = items_told(asked, voices)
    write_whole(
        folder / GATE_ANSWERS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    )
    whole = told(report, asked, voices, line=against.line, run_id=against.run_id)
    write_whole(folder / GATE_REPORT_PAGE, page(whole).encode())
    write_whole(folder / GATE_REPORT, (json.dumps(whole, ensure_ascii=False, indent=1) + "\n").encode())
    return report
