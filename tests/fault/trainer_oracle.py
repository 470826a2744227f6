"""Checks I5 and I6 on a line whose only run was interrupted, and that every row was trained on exactly once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from services.trainer.dataset import snapshot_files
from services.trainer.dataset.snapshot_files import SNAPSHOT
from services.trainer.versions.model_card import ADAPTER_FILES
from shared.versions import ModelVersion


@dataclass
class Observations:
    """Observations of a run.

    `datasets` and `runs` are the digests of snapshots and the names of run folders that were ever on disk. `weights`
    are digests by version, `undisturbed_weights` is the digest of the same run without interruptions.
    """

    versions: list[ModelVersion] = field(default_factory=list)
    datasets: set[str] = field(default_factory=set)
    runs: set[str] = field(default_factory=set)
    weights: dict[str, str] = field(default_factory=dict)
    undisturbed_weights: str = ""
    retaken_dataset: str = ""
    """Digest of the snapshot that the undisturbed run took from the same batches."""

    def observe(self, runs: Path) -> None:
        """Add the current snapshots and run folders."""
        self.runs |= {folder.name for folder in runs.glob("*")}
        self.datasets |= {snapshot_files.read_ref(mark.parent).digest for mark in runs.glob(f"*/{SNAPSHOT}")}


def weights_of(folder: Path) -> str:
    """Return the digest of the weights in the folder of an adapter or an artifact."""
    return hashlib.sha256((folder / ADAPTER_FILES[0]).read_bytes()).hexdigest()


def violations(observations: Observations) -> Iterator[str]:
    """Yield the violations found, each starting with its name."""
    names = [version.ref.version for version in observations.versions]
    if len(names) != 1:
        yield f"I6 published: {len(names)} versions of one run: {names}"
    if len(observations.runs) != 1:
        yield f"I6 runs: {len(observations.runs)}"
    if len(observations.datasets) != 1 or observations.retaken_dataset not in observations.datasets:
        yield f"I5 dataset: {sorted(observations.datasets)}, and {observations.retaken_dataset} when taken again"
    if any(
        version.dataset is None or version.dataset.digest not in observations.datasets
        for version in observations.versions
    ):
        yield "I5 version: its dataset is not that of its run"
    if any(digest != observations.undisturbed_weights for digest in observations.weights.values()):
        yield "weights: not those of the undisturbed run"
