"""Progress of an import in a file, so that the same command continues after Ctrl-C or an outage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO, Final

from loopwright.imports.importer import Refusal, Report

BEGINNING: Final = 1_048_576
"""Bytes of a file that identify it, with its size."""


def fingerprint(streams: Iterable[BinaryIO], *options: object) -> str | None:
    """Return what identifies an import: its files and its options. None if a file cannot be read twice, like a pipe."""
    digest = hashlib.sha256(repr(options).encode("utf-8", "surrogatepass"))
    for stream in streams:
        if not stream.seekable():
            return None
        digest.update(stream.read(BEGINNING))
        digest.update(f"/{stream.seek(0, 2)}/".encode())
        stream.seek(0)
    return digest.hexdigest()[:32]


class Checkpoint:
    """The file with the progress of one import. Without a path, nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def load(self) -> Report:
        """Return the report of an interrupted import, or a new one."""
        if self._path is None:
            return Report()
        try:
            saved = json.loads(self._path.read_text(encoding="utf-8"))
            refusals = [Refusal(**refusal) for refusal in saved.pop("refusals")]
            return Report(**saved, refusals=refusals)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            # A missing or broken file costs time only: rows that are sent again count once.
            return Report()

    def save(self, report: Report) -> None:
        """Keep the report."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(asdict(report)), encoding="utf-8")
        part.replace(self._path)

    def remove(self) -> None:
        """Forget the progress: the import is complete."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
