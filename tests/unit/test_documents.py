"""The documents name files of the repository that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("sdk/**/*.md")])
MODULE = re.compile(r"`([\w./-]+\.py)`")


def modules() -> list[str]:
    """Return the Python files of the repository, each with a slash before its path."""
    folders = ("services", "shared", "sdk", "deploy", "examples", "benchmarks", "tests")
    return [f"/{path.relative_to(ROOT)}" for folder in folders for path in (ROOT / folder).rglob("*.py")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_modules_exist(document: Path) -> None:
    known = modules()
    named = set(MODULE.findall(document.read_text(encoding="utf-8")))
    assert [name for name in sorted(named) if not any(one.endswith(f"/{name}") for one in known)] == []


def test_documents_name_modules() -> None:
    """Guards the pattern: a test that finds no names would pass."""
    assert len(MODULE.findall((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))) > 20
