"""The chapter's rows, and its rule for training targets as an independent reference."""

from __future__ import annotations

import json
from pathlib import Path

ROWS = Path(__file__).with_name("rows.json")


def read_rows(path: Path = ROWS) -> list[dict[str, str]]:
    """Return the rows of a JSON file, each with `input`, `response` and `feedback`."""
    rows: list[dict[str, str]] = json.loads(path.read_text())
    return rows


def targets(rows: list[dict[str, str]]) -> dict[str, str]:
    """Return question -> training target by the chapter's rule, `response + " " + feedback`."""
    return {row["input"]: row["response"] + " " + row["feedback"] for row in rows}
