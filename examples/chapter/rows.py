"""The chapter's rows and its rule, told apart from the code that is to keep to it."""

from __future__ import annotations

import json
from pathlib import Path

ROWS = Path(__file__).with_name("rows.json")


def read(path: Path = ROWS) -> list[dict[str, str]]:
    """The rows, as a notebook keeps them."""
    rows: list[dict[str, str]] = json.loads(path.read_text())
    return rows


def targets(rows: list[dict[str, str]]) -> dict[str, str]:
    """The question -> what is trained on it: the chapter's `target = response + " " + feedback`."""
    return {row["input"]: row["response"] + " " + row["feedback"] for row in rows}
